"""Checks of the files that a run will write, before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from tokenswift_jax.errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Raises UserError unless `path` can be written; leaves no trace."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise UserError(f"{option} {path} is not writable; change its permissions or name another file")
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: the folder {folder} is not writable; name another")
