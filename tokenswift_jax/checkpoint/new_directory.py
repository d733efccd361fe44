"""A directory that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import resolved

_LAST = "config.json"  # without it, a directory is no checkpoint


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A folder that becomes `destination` if the block succeeds and is deleted otherwise.

    An empty directory stays and gets the folder's files: it may be a mount point, or the working directory of a shell,
    and neither can be replaced. A link stays, and what it leads to becomes the folder.

    Raises:
      UserError: the destination exists and is not an empty directory, or it cannot be written.
    """
    try:
        place = resolved(destination)
        if place.is_symlink():
            raise UserError(f"{destination} is a loop of links; name a directory that is new or empty")
        exists = place.exists()
        if exists and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{destination} exists already; name a directory that is new or empty")
        if not place.parent.is_dir():
            raise UserError(f"cannot write {destination}: there is no directory {place.parent}")
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place if exists else place.parent))
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from None
    try:
        yield draft
        if exists:
            _move_files(draft, place)
        else:
            umask = os.umask(0)
            os.umask(umask)
            draft.chmod(0o777 & ~umask)
            draft.replace(place)
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_files(draft: Path, place: Path) -> None:
    """Moves all of a folder into another one, or nothing if the system refuses."""
    moved: list[tuple[Path, Path]] = []
    try:
        for file in sorted(draft.iterdir(), key=lambda file: file.name == _LAST):
            moved.append((file, place / file.name))
            file.rename(place / file.name)
    except BaseException:
        for file, there in moved:
            with contextlib.suppress(OSError):
                there.rename(file)
        raise
