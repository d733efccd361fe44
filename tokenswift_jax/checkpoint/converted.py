"""GGUF files as checkpoint directories: each is converted once, into the cache folder, under a hash of its bytes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenswift_jax.checkpoint.new_directory import new_directory
from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import cache_folder, resolved
from tokenswift_jax.progress_report import Report, silent

SOURCE_FILE = "source.json"
_FOLDER = "gguf"  # of the cache
# Part of the folder's name: a change of what the conversion writes needs a new number, or old results stay in use.
_FORMAT = 2
_HASHED = 1 << 24  # bytes a read


def converted(file: Path, name: str | None = None, report: Report = silent) -> Path:
    """The directory with the converted file; converts it if no earlier run did.

    Args:
      file: a GGUF file.
      name: the name under which a person asked for it, if it was not the path.
      report: receives the progress of the conversion.

    Raises:
      UserError: the file cannot be converted, or the cache folder cannot be written.
    """
    from tokenswift_jax.checkpoint.gguf.container import map_file
    from tokenswift_jax.checkpoint.gguf.conversion import convert_gguf

    map_file(file)  # a file that is not GGUF gets its own message before all of it is read
    file = resolved(file)
    place = cache_folder(_FOLDER) / f"{file.stem}-{_hash(file)[:24]}-{_FORMAT}"
    if not (place / "config.json").is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with new_directory(place) as folder:
                convert_gguf(file, folder, report=report)
        except (OSError, UserError) as error:
            if not (place / "config.json").is_file():  # else another process has just written it
                if isinstance(error, OSError):
                    raise UserError(f"cannot write {place}: {error.strerror or error}") from None
                raise
    _remember(place, name or str(file))
    return place


@contextlib.contextmanager
def conversion_advice(directory: Path) -> Iterator[None]:
    """Adds the remedy to errors about files of `directory`, if they are of the cache."""
    try:
        yield
    except UserError as error:
        source = source_name(directory)
        if source is None:
            raise
        raise UserError(f"{error}; delete {directory}, and {source} is converted again", error.arguments) from None


def source_name(directory: Path) -> str | None:
    """The name from which a directory of the cache was last converted; None for any other directory."""
    try:
        if directory.parent != cache_folder(_FOLDER):
            return None
        return json.loads((directory / SOURCE_FILE).read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):  # without a home a UserError, which is a ValueError
        return None


def _hash(file: Path) -> str:
    status = file.stat()
    return _hash_of(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash_of(file: Path, size: int, changed: int) -> str:
    del size, changed  # parts of the cache's key: a file that was written again is read again
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_HASHED):
            digest.update(part)
    return digest.hexdigest()


def _remember(directory: Path, source: str) -> None:
    """Stores the name of the source, so that heads trained on the directory can refer to it; a cache that cannot be
    written keeps the name that it has."""
    if source_name(directory) == source:
        return
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        draft = stack.enter_context(tempfile.NamedTemporaryFile("w", dir=directory, delete=False, encoding="utf-8"))
        stack.callback(Path(draft.name).unlink, missing_ok=True)
        json.dump({"source": source}, draft)
        draft.close()
        os.replace(draft.name, directory / SOURCE_FILE)
