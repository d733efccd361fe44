"""Converters for `argparse`: each returns the value of a flag's text, or raises one line that names the right form."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any


def whole(low: int) -> Any:
    """A converter to whole numbers of at least `low`."""

    def convert(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return value

    return convert


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def whole_list(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,3,3,3")
    return tuple(int(part) for part in text.split(","))


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a JSON object such as {{"rope_type": "yarn", "factor": 4.0}}'
        )
    return value


def one_device(text: str) -> str:
    """A mesh of one device: 1, 1x1, ..."""
    if not re.fullmatch(r"1(x1)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: one device is supported so far; give 1 or leave it out")
    return text


def stop_text(text: str) -> str:
    """Text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("a stop string has at least one character")
    return text
