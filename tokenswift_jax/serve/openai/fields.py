"""The fields of a JSON body, each read once, checked, and remembered as known."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tokenswift_jax.serve.openai.errors import ApiError, bad
from tokenswift_jax.text.reading import decode, json_fault

_NAMES_SHOWN = 20  # unknown fields named in a header


def parsed(data: bytes) -> dict[str, Any]:
    """The object of a body.

    Raises:
      ApiError: the body is not JSON of UTF-8 text, or not an object.
    """
    try:
        body = json.loads(decode(data), parse_constant=_no_constant)
        # JSON may bring half a surrogate pair, which no UTF-8 answer can repeat, and no prompt contains.
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not JSON in UTF-8: {json_fault(error)}") from None
    if not isinstance(body, dict):
        raise bad(f"the body must be a JSON object, and it is {_kind(body)}")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """Reads the fields of an object. A field that is null counts as absent.

    Attributes:
      body: the object.
    """

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        """Errors put `prefix` before the names of fields, for an object inside another."""
        self.body, self._prefix = body, prefix
        self._known: set[str] = set()
        self._without_effect: list[str] = []

    def get(self, name: str) -> Any:
        """The value of a field without a check; None where it is absent."""
        self._known.add(name)
        return self.body.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number in a range."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number in a range."""
        value = self.get(name)
        if value is None:
            return None
        # The range comes first: `isfinite` fails on whole numbers that no float holds.
        if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
            raise self.wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, otherwise: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return otherwise
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def text(self, name: str, most: int | None = None) -> str | None:
        """Text of at most so many characters."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, value, "text")
        if most is not None and len(value) > most:
            raise bad(f"{self._prefix}{name} has {len(value)} characters; the most is {most}", self._prefix + name)
        return value

    def texts(self, name: str, most: int, characters: int) -> tuple[str, ...] | None:
        """A list of texts, none empty; one text is a list of one."""
        value = self.get(name)
        if value is None:
            return None
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(one, str) and one for one in listed):
            raise self.wrong(name, value, "text or a list of texts, none of them empty")
        self._short(name, listed, most)
        longest = max(map(len, listed), default=0)
        if longest > characters:
            raise bad(f"{name} has an entry of {longest} characters; the most is {characters}", self._prefix + name)
        return tuple(listed)

    def ids(self, name: str, most: int, vocab: int) -> tuple[int, ...] | None:
        """A list of token ids of a vocabulary."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(one) is int and 0 <= one < vocab for one in value):
            raise self.wrong(name, value, f"a list of token ids from 0 to {vocab - 1}")
        self._short(name, value, most)
        return tuple(value)

    def inside(self, name: str) -> Fields | None:
        """The fields of an object."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Fields(value, f"{self._prefix}{name}.")

    def refuse(
        self,
        names: Mapping[str, Collection[Any]],
        why: str = "is not supported by this server",
        *,
        empty: bool = True,
    ) -> None:
        """Refuses fields by name, unless they are null or neutral: one of the given values, or empty if `empty`."""
        for name, neutral in names.items():
            value = self.get(name)
            if value is None or (empty and value in ([], {}, "")) or any(_same(value, each) for each in neutral):
                continue
            raise bad(f"{self._prefix}{name} {why}; leave it out", self._prefix + name, "unsupported_field")

    def ignore(self, names: Sequence[str]) -> None:
        """Names fields that change nothing here."""
        self._known.update(names)

    def without_effect(self, name: str) -> None:
        """Names a field that changes nothing on this server, and that `notice` reports."""
        self._without_effect.append(name)

    @property
    def unknown(self) -> list[str]:
        """The names of the fields that nobody read, and of those without effect."""
        return [name for name in self.body if name not in self._known or name in self._without_effect]

    @property
    def notice(self) -> dict[str, str]:
        """A header that names the fields that had no effect; empty if there are none."""
        names = [name for name in self.unknown if name.isascii() and name.isprintable() and len(name) <= 64]
        return {"x-ignored-fields": ", ".join(names[:_NAMES_SHOWN])} if names else {}

    def wrong(self, name: str, value: Any, right: str) -> ApiError:
        """The error for a field with a wrong value."""
        shown = json.dumps(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return bad(f"{self._prefix}{name} is {shown}; it must be {right}", self._prefix + name)

    def _short(self, name: str, value: Sequence[Any], most: int) -> None:
        if len(value) > most:
            raise bad(f"{self._prefix}{name} has {len(value)} entries; the most is {most}", self._prefix + name)


def _same(value: Any, neutral: Any) -> bool:
    """Whether two JSON values are equal, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
