"""Packages that a bare machine lacks, as wheels: downloading and installing them. wheels.txt says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PINNED = Path(__file__).with_name("wheels.txt")
WHEELS = dict(line.split("==") for line in PINNED.read_text(encoding="utf-8").split("\n") if "==" in line)
# pip takes each tag alone: a newer one does not include the older ones.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def download(folder: Path) -> int:
    """Downloads the wheels from the package index; pip's exit status."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", "3.12", "--implementation", "cp", "-r", str(PINNED)]
    command += [part for platform in _PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
    code = subprocess.run(command, check=False).returncode
    found = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in found)
    print(f"{len(found)} wheels in {folder}, {size / 1e6:.0f} MB; missing: {', '.join(missing(folder)) or 'none'}")
    return code


def missing(folder: Path) -> list[str]:
    """The packages whose wheel, in the version wanted, is missing from a folder."""
    patterns = {f"{name} {version}": f"{name.replace('-', '_')}-{version}-*.whl" for name, version in WHEELS.items()}
    return [name for name, pattern in patterns.items() if not any(folder.glob(pattern))]


def install(folder: Path, site: Path) -> list[str]:
    """Puts a folder's wheels into `site`, for PYTHONPATH, unless they are there; returns those that failed, and why."""
    wheels, complete = sorted(folder.glob("*.whl")), site / ".complete"
    listing = "\n".join(wheel.name for wheel in wheels)
    if not wheels or (complete.exists() and complete.read_text(encoding="utf-8") == listing):
        return []
    site.mkdir(parents=True, exist_ok=True)
    failed = []
    if _pip(site, wheels):  # then each alone: one that does not fit this Python must not cost the others
        failed = [f"{wheel.name}: {error}" for wheel in wheels for error in [_pip(site, [wheel])] if error]
    if not failed:
        complete.write_text(listing, encoding="utf-8")
    return failed


def _pip(site: Path, wheels: list[Path]) -> str:
    """The last line of pip's complaint, "" if it has none."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    command += ["--disable-pip-version-check", "--target", str(site), *map(str, wheels)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else (ran.stderr.strip() or f"pip exits with {ran.returncode}").splitlines()[-1]
