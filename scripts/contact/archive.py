"""One file of bounded size with a plan's logs, XLA's dumps and compiled programs."""

from __future__ import annotations

import tarfile
import zlib
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
    """Writes a .tar.gz of at most `most` bytes; returns its size, how many files it has, and the files left out."""
    files = {each: None for kind in KINDS for each in sorted(filter(Path.is_file, work.glob(kind)), key=_size)}
    taken, left, size = 0, [], _HEADER
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for file in files:
            try:
                packed = len(zlib.compress(file.read_bytes(), 6)) + _HEADER
            except OSError:
                continue  # a compiler deleted its temporary file
            if size + packed > most:
                left.append(str(file.relative_to(work)))
                continue
            archive.add(file, file.relative_to(work))
            taken, size = taken + 1, size + packed
    return {"bytes": path.stat().st_size, "files": taken, "left_out": left}


def unpack(path: Path, work: Path) -> None:
    """Puts an archive's files back, for a plan that goes on on another machine of the same kind."""
    with tarfile.open(path) as archive:
        archive.extractall(work, filter="data")


def _size(path: Path) -> tuple[int, Path]:
    return path.stat().st_size, path
