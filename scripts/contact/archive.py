"""One file of bounded size with a plan's logs, XLA's dumps and compiled programs."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# In the order of their worth; within a kind the smallest first.
KINDS = (
    "*/*.jsonl",
    "*/*.log",
    "dump/*/*thunk_sequence_after_thunk_passes.txt",
    "dump/*/*autotune_results.pbtxt",
    "dump/*/*gpu_after_optimizations.txt",
    "cache/**/*autotune*/**/*",
    "dump/*/*.ptx",
    "cache/**/*",
)
_HEADER = 1024  # bytes a file, at most, of its name and padding


def write_archive(work: Path, path: Path, most: int) -> dict[str, Any]:
    """Writes a .tar.gz of at most `most` bytes; returns its size, how many files it has, and those that it has not."""
    taken, left, size = [], [], _HEADER
    for file in _files(work):
        try:
            packed = len(zlib.compress(file.read_bytes(), 6)) + _HEADER
        except OSError:
            continue  # a compiler's temporary file that is gone
        if size + packed > most:
            left.append(str(file.relative_to(work)))
            continue
        size += packed
        taken.append(file)
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for file in taken:
            archive.add(file, file.relative_to(work))
    return {"bytes": path.stat().st_size, "files": len(taken), "left_out": left}


def unpack(path: Path, work: Path) -> None:
    """Puts an archive's files back, for a plan that goes on on another machine of the same kind."""
    with tarfile.open(path) as archive:
        archive.extractall(work, filter="data")


def _files(work: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for kind in KINDS:
        found = [path for path in work.glob(kind) if path.is_file() and path not in seen]
        seen.update(found)
        yield from sorted(found, key=lambda path: (path.stat().st_size, path))
