"""Packages that a bare machine lacks, as wheels: which, downloading and installing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# For jax 0.11.2 on Python 3.12 and Linux on x86-64. An older flax fails with this jax; without tokamax, and its imports,
# prefill runs a slower kernel.
_PINNED = [
    "flax==0.12.12",
    "tokamax==0.0.17",
    "qwix==0.1.8",
    "einshape==1.0",
    "immutabledict==4.3.1",
    "pydantic==2.14.4",
    "pydantic-core==2.50.5",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
    "xprof==2.24.2",
    "fire==0.7.1",
    "termcolor==3.3.0",
]
WHEELS = dict(each.split("==") for each in _PINNED)
# pip takes each tag alone: a newer one does not include the older ones.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_COMPLETE = ".complete"  # lists what was put there


def download(folder: Path) -> int:
    """Collects the wheels from the package index and says which; what pip exits with."""
    print("\n".join(_PINNED))
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "-d", str(folder)]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    code = subprocess.run([*command, *_PINNED], check=False).returncode
    found, absent = list(folder.glob("*.whl")), missing(folder)
    size = sum(path.stat().st_size for path in found)
    print(f"{len(found)} wheels in {folder}, {size / 1e6:.0f} MB; missing: {', '.join(absent) or 'none'}")
    return code


def missing(folder: Path) -> list[str]:
    """The packages whose wheel, in the version wanted, is missing from a folder."""
    return [
        f"{name} {version}"
        for name, version in WHEELS.items()
        if not any(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    ]


def install(folder: Path, site: Path) -> list[str]:
    """Puts a folder's wheels into another, for PYTHONPATH, unless they are there; returns what could not be."""
    wheels = sorted(folder.glob("*.whl"))
    complete = site / _COMPLETE
    listing = "\n".join(wheel.name for wheel in wheels)
    if not wheels or (complete.exists() and complete.read_text(encoding="utf-8") == listing):
        return []
    site.mkdir(parents=True, exist_ok=True)
    failed = []
    if _pip(site, wheels):  # then each alone: one that does not fit this Python must not cost the others
        failed = [f"{wheel.name}: {said}" for wheel in wheels for said in [_pip(site, [wheel])] if said]
    if not failed:
        complete.write_text(listing, encoding="utf-8")
    return failed


def _pip(site: Path, wheels: list[Path]) -> str:
    """The last line of pip's complaint, "" if it has none."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    command += ["--disable-pip-version-check", "--target", str(site), *map(str, wheels)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else (ran.stderr.strip() or f"pip exits with {ran.returncode}").splitlines()[-1]
