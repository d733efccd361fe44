"""Converters for `argparse`: each returns the value of a flag's text, or raises one line that names the right form."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tokenswift_jax.paths import expanded

_MOST_DIGITS = 1000  # Python reads no whole number of more than 4,300


def _whole(text: str) -> int | None:
    """The whole number that a text is; None: it is none."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        return None
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:20]}... has {len(text)} digits, too many for any setting")
    return int(text)


def whole(low: int) -> Any:
    """A converter to whole numbers of at least `low`."""

    def convert(text: str) -> int:
        value = _whole(text)
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return value

    return convert


def integer(text: str) -> int:
    """A whole number."""
    if (value := _whole(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return value


def number(text: str) -> float:
    """A number, in decimal or scientific notation; inf and nan pass, for the check of the range to name."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|nan)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return float(text)


def whole_list(example: str) -> Any:
    """A converter to whole numbers with commas between them; errors show the example."""

    def convert(text: str) -> tuple[int, ...]:
        parts = [_whole(part) if part[:1].isdecimal() else None for part in text.split(",")]
        if None in parts:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as {example}")
        return tuple(part for part in parts if part is not None)

    return convert


def name(text: str) -> str:
    """The name of a file, a folder or a checkpoint; an empty one, as of a variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def path(text: str) -> Path:
    """The path of a file or a folder."""
    return expanded(name(text))


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f'{text!r:.80} is not a JSON object such as {{"rope_type": "yarn", "factor": 4.0}}'
        )
    return value


def stop_text(text: str) -> str:
    """Text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("a stop string has at least one character")
    return text
