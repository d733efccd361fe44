"""Errors that a person caused and can correct."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """One line that names the fault and the remedy; commands print it and exit with status 2.

    Attributes:
      arguments: names of Python arguments in the message, each for its first occurrence that no earlier entry took. A
        command prints its own flags in place of these names, and `--name` for `name=True`.
    """

    def __init__(self, message: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.arguments = tuple(arguments)


def check_whole(name: str, value: object, low: int) -> None:
    """Raises UserError unless `value` is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {low}", arguments=(name,))


@contextmanager
def read_from(source: str, given: Collection[str]) -> Iterator[None]:
    """Puts `source`, the file that set the other values, before errors about none of the `given` arguments."""
    try:
        yield
    except UserError as error:
        if given and not set(error.arguments).isdisjoint(given):
            raise
        raise UserError(f"{source}: {error}") from None


class NumericsError(ArithmeticError):
    """The logits of a position are not numbers, and their row has ended.

    Attributes:
      position: index in the text (prompt included) of the token that could not be drawn.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"the logits of position {position} are not numbers (NaN); the text before it stands")
        self.position = position
