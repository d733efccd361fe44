"""The memory that this process may still take on Linux: the kernel's estimate, within the limits of its cgroups."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED = 2**60  # bytes; version 1 writes "no limit" as the largest multiple of a page below 2^63


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say.

    That is MemAvailable, which counts the page cache that the kernel can drop (MemFree does not), or what the limits of
    the process's cgroups (versions 1 and 2, of containers and services) leave, whichever is less.

    Args:
      root: the folder that contains `proc` and `sys`.
    """
    known = [value for value in (_meminfo(root), *_cgroups(root)) if value is not None]
    if known:
        return max(min(known), 0)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _meminfo(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _cgroups(root: Path) -> Iterator[int | None]:
    """The bytes that each memory cgroup of the process leaves, those above it included."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            kind, option, names = "cgroup2", None, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            kind, option = "cgroup", "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for folder in _folders(root, kind, option, path):
            yield _left(folder, *names)


def _folders(root: Path, kind: str, option: str | None, path: str) -> Iterator[Path]:
    """The folder of a cgroup and those of its ancestors that are mounted."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, described = before.split(), after.split()
        if len(fields) < 5 or len(described) < 3 or described[0] != kind:
            continue
        if option is not None and option not in described[2].split(","):
            continue
        mounted = root / fields[4].lstrip("/")
        # A container's mount begins at the container's own cgroup, but the kernel may name that cgroup by its path on
        # the host.
        with contextlib.suppress(ValueError):
            below = PurePosixPath(path).relative_to(fields[3])
            for part in (below, *below.parents):
                if str(part) != ".":
                    yield mounted / part
        yield mounted


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not allowed.isdigit() or not used.isdigit() or int(allowed) >= _UNLIMITED:
        return None
    cached = re.search(rf"^{reclaimable} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return int(allowed) - int(used) + (0 if cached is None else int(cached[1]))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
