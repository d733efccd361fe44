"""The cgroups of this process on Linux (versions 1 and 2), by which containers and services limit it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of the process's cgroups and of those above them, each with its version (1 or 2).

    Args:
      controller: the name in version 1 of what they limit: `memory` or `cpu`.
      root: the folder that contains `proc` and `sys`.
    """
    for line in contents(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            yield from ((folder, 2) for folder in _mounted(root, "cgroup2", None, path))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _mounted(root, "cgroup", controller, path))


def contents(file: Path) -> str:
    """The text of a file of the kernel; empty where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mounted(root: Path, kind: str, option: str | None, path: str) -> Iterator[Path]:
    """The folder of a cgroup and those of its ancestors that are mounted."""
    for line in contents(root / "proc/self/mountinfo").splitlines():
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
