"""A directory that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenswift_jax.errors import UserError


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A folder that becomes `destination` if the block succeeds and is deleted otherwise.

    Raises:
      UserError: the destination exists and is not an empty directory, or it cannot be written.
    """
    parent = destination.absolute().parent
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise UserError(f"{destination} exists already; name a directory that is new or empty")
        if not parent.is_dir():
            raise UserError(f"cannot write {destination}: there is no directory {parent}")
        draft = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from None
    try:
        yield draft
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o777 & ~umask)
        draft.replace(destination)
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
