"""Errors that a person caused and can correct."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

_PACKAGES = ("tokenswift_jax", "convert")
# Errors of the system that more room mends: no space, a person's quota, the largest file that is allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """One line that names the fault and the remedy; commands print it and exit with status 2.

    Attributes:
      arguments: names of Python arguments in the message, each for its first occurrence that no earlier entry took. A
        command prints its own flags in place of these names, and `--name` for `name=True`.
    """

    def __init__(self, message: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.arguments = tuple(arguments)


def is_whole(value: Any, least: int) -> bool:
    """Whether `value` is a whole number, of Python or of NumPy, and at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(name: str, value: Any, low: int) -> int:
    """The whole number `value` as Python's int.

    Raises:
      UserError: it is no whole number (`is_whole`), or below `low`.
    """
    if not is_whole(value, low):
        raise UserError(f"{name} is {value!r:.80}; it must be a whole number of at least {low}", arguments=(name,))
    return int(value)


def shortened(value: Any) -> str:
    """The repr of a value that a message quotes, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def read_from(source: str, given: Collection[str]) -> Iterator[None]:
    """Puts `source`, the file that set the other values, before errors about none of the `given` arguments."""
    try:
        yield
    except UserError as error:
        if given and not set(error.arguments).isdisjoint(given):
            raise
        raise UserError(f"{source}: {error}") from None


class WriteError(OSError):
    """A file could not be written, such as on a full disk; its one line names the file.

    Attributes:
      path: the file, or the name of a stream.
    """

    def __init__(self, path: object, reason: OSError) -> None:
        super().__init__(f"cannot write {path}: {reason.strerror or reason}")
        self.path, self.strerror = path, reason.strerror


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turns a system error of the block, which writes `path`, into a `WriteError`; broken pipes pass."""
    try:
        yield
    except (BrokenPipeError, WriteError):
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, or one of XLA, which is a RuntimeError or a ValueError."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


class TextWarning(UserWarning):
    """One line about a text that a person may not expect; commands print it on stderr."""


def warn(message: str) -> None:
    """Warns at the place outside this project's packages from which the call came."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TextWarning, stacklevel=level - 1)


class NumericsError(ArithmeticError):
    """No token can be drawn at a position, since its logits are not finite numbers; its row has ended.

    Attributes:
      position: index in the text (prompt included) of the token that could not be drawn.
    """

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the logits of position {position} are not numbers (NaN or infinite); the text before it is complete"
        )
        self.position = position
