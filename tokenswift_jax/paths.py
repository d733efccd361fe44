"""Places on disk: the cache folder, and checks of the files that a run will write, before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from tokenswift_jax.errors import UserError, writing


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of a leading ~; a ~ without such a folder stays.

    Raises:
      UserError: the argument is no name.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r:.80} is no name of a file or folder")
    if "\0" in os.fsdecode(path):
        raise UserError(f"{os.fsdecode(path)!r:.80} is no name of a file or folder: it has a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def resolved(path: str | Path) -> Path:
    """The path without links; of a loop of links, as far as it leads (`Path.resolve` raises a RuntimeError there)."""
    return Path(os.path.realpath(path))


def cache_folder(name: str) -> Path:
    """The folder of that name in the cache of this package, below XDG_CACHE_HOME or the home folder.

    Raises:
      UserError: there is neither.
    """
    return _own_folder("cache", "XDG_CACHE_HOME", "~/.cache") / name


def state_folder() -> Path:
    """The folder of this package below XDG_STATE_HOME or the home folder, for what outlives a server.

    Raises:
      UserError: there is neither.
    """
    return _own_folder("state", "XDG_STATE_HOME", "~/.local/state")


def _own_folder(kind: str, variable: str, otherwise: str) -> Path:
    home = os.environ.get(variable) or otherwise
    try:
        return Path(home).expanduser() / "tokenswift_jax"
    except RuntimeError:
        raise UserError(f"the {kind} folder is {home}, and there is no home; set {variable}") from None


def check_writable(path: Path, argument: str) -> None:
    """Raises UserError, about the argument of that name, unless `path` can be written; it writes nothing."""
    problem = _problem(path)
    if problem is not None:
        raise UserError(f"{argument} {path}{problem}", arguments=(argument,))


def write_text(path: Path, text: str) -> None:
    """Writes a file whole.

    Raises:
      WriteError: the system refuses, for example on a full disk.
    """
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _problem(path: Path) -> str | None:
    try:
        return _problem_of(path)
    except OSError as error:  # such as a name that is too long, or a folder that may not be searched
        return f": {error.strerror}"


def _problem_of(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        path = resolved(path)  # the file that would be made
        if path.is_symlink():
            return " is a loop of links; name a file"
    if path.is_dir():
        return " is a folder; name a file"
    if path.exists():
        if not os.access(path, os.W_OK):
            return " is not writable; change its permissions or name another file"
        return None
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}; make it first"
    if not os.access(folder, os.W_OK):
        return f": the folder {folder} is not writable; name another"
    return None
