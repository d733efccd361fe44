"""The metadata of one architecture, taken key by key: a key that nobody takes is an error, never silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError

_NO_TOKEN = (-1, 2**32 - 1)  # llama.cpp's "no token", with a sign and without


class Fields:
    """The keys below one prefix, such as `llama.`; each method takes a key by the rest of its name."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], prefix: str) -> None:
        self.path, self._prefix = path, prefix
        self._left = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}

    def error(self, fault: str) -> UserError:
        """An error about the file."""
        return UserError(f"{self.path} {fault}")

    def whole(self, name: str) -> int | None:
        """A positive whole number; None if the key is absent.

        A list with one value per layer counts as that value if all are equal.
        """
        value = self._left.pop(name, None)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            what = (
                "differs by layer; only one value for all is known" if isinstance(value, list) else f"is {value!r:.80}"
            )
            raise self.error(f"cannot be used: {self._prefix}{name} {what}")
        return value

    def required(self, name: str) -> int:
        """A positive whole number that every file states.

        Raises:
          UserError: the key is absent, or its value is of another kind.
        """
        value = self.whole(name)
        if value is None:
            raise self.error(f"lacks {self._prefix}{name}")
        return value

    def index(self, name: str) -> int | None:
        """A number that counts from 0; None if the key is absent."""
        value = self._left.pop(name, None)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise self.error(f"cannot be used: {self._prefix}{name} is {value!r:.80}")
        return value

    def token(self, name: str) -> int | None:
        """A token id; None if the key is absent or says that there is none."""
        if self._left.get(name) in _NO_TOKEN:
            self.ignore(name)
        return self.index(name)

    def number(self, name: str, low: float = 0) -> float | None:
        """A finite number of at least `low`; None if the key is absent."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < math.inf:
            raise self.error(f"cannot be used: {self._prefix}{name} is {value!r:.80}")
        return float(value)

    def text(self, name: str) -> str | None:
        """A text; None if the key is absent."""
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise self.error(f"cannot be used: {self._prefix}{name} is {value!r:.80}")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false; None if the key is absent."""
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"cannot be used: {self._prefix}{name} is {value!r:.80}")
        return value

    def values(self, name: str, kind: type) -> list[Any] | None:
        """A list of values of one type; None if the key is absent."""
        value = self._left.pop(name, None)
        if value is not None and (not isinstance(value, list) or not all(type(item) is kind for item in value)):
            raise self.error(f"cannot be used: {self._prefix}{name} is not a list of {kind.__name__}")
        return value

    def ignore(self, *names: str) -> None:
        """Takes keys that change no text."""
        for name in names:
            self._left.pop(name, None)

    def neutral(self, name: str, *values: float) -> None:
        """Takes a key that changes no text as long as it has one of `values`.

        Raises:
          UserError: the key has another value.
        """
        value = self._left.pop(name, values[0])
        if value not in values:
            raise self.error(f"states {self._prefix}{name} {value!r:.80}; only {values[0]!r} is supported")

    def rest(self) -> dict[str, Any]:
        """Takes every key that is left, by its whole name."""
        left, self._left = self._left, {}
        return {f"{self._prefix}{name}": value for name, value in sorted(left.items())}

    def finish(self) -> None:
        """Raises UserError if the file states a key that nobody took."""
        if self._left:
            keys = ", ".join(f"{self._prefix}{name}" for name in sorted(self._left))
            raise self.error(f"states {keys}, which this program does not know and which may change the text")
