"""The memory that this process may still take on Linux: the kernel's estimate, within its limits and its cgroups'."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tokenswift_jax.hardware.cgroups import cgroup_folders, contents

_UNLIMITED = 2**60  # bytes; version 1 writes "no limit" as the largest multiple of a page below 2^63
# The files of a cgroup's limit and use, and the field of the memory that the kernel can drop, by version.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say.

    That is MemAvailable, which counts the page cache that the kernel can drop (MemFree does not), or what the limits of
    the process (`ulimit`) and of its cgroups (of containers and services) leave, whichever is least.

    Args:
      root: the folder that contains `proc` and `sys`.
    """
    known = [value for value in (_meminfo(root), *_cgroups(root), *_process(root)) if value is not None]
    if known:
        return max(min(known), 0)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _meminfo(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", contents(root / "proc/meminfo"), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _cgroups(root: Path) -> Iterator[int | None]:
    """The bytes that each memory cgroup of the process leaves, those above it included."""
    for folder, version in cgroup_folders("memory", root):
        yield _left(folder, *_FILES[version])


def _process(root: Path) -> Iterator[int | None]:
    """The bytes that the limits of the process itself leave (`ulimit -v` and `-d`)."""
    limits, used = contents(root / "proc/self/limits"), contents(root / "proc/self/status")
    for limit, usage in (("Max address space", "VmSize"), ("Max data size", "VmData")):
        allowed = re.search(rf"^{limit}\s+(\d+)\s", limits, re.MULTILINE)
        taken = re.search(rf"^{usage}:\s*(\d+) kB", used, re.MULTILINE)
        yield None if allowed is None or taken is None else int(allowed[1]) - int(taken[1]) * 1024


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    allowed, used = contents(folder / limit).strip(), contents(folder / usage).strip()
    if not allowed.isdigit() or not used.isdigit() or int(allowed) >= _UNLIMITED:
        return None
    cached = re.search(rf"^{reclaimable} (\d+)$", contents(folder / "memory.stat"), re.MULTILINE)
    return int(allowed) - int(used) + (0 if cached is None else int(cached[1]))
