"""The reader of text and JSON from bytes, for prompt files, training data and checkpoints alike."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError

_FOREIGN = {  # byte-order marks of other encodings; the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


POINTER = b"version https://git-lfs.github.com/"
NOT_FETCHED = "is a pointer of Git LFS in place of the file; fetch the file itself with git lfs pull"


def is_pointer(data: bytes) -> bool:
    """Whether a file's first bytes are those of a pointer: a clone without Git LFS has pointers for large files."""
    return data.startswith(POINTER)


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can express a text. JSON and command lines may bring half a surrogate pair, which it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class NotTextError(ValueError):
    """Bytes that are not UTF-8 text.

    Attributes:
      line: the line of the fault, counted from 1.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def decode(data: bytes) -> str:
    """The exact text of UTF-8 bytes without a byte-order mark, which some editors write before it.

    Raises:
      NotTextError: other bytes, or a zero byte.
    """
    foreign = next((name for mark, name in _FOREIGN.items() if data.startswith(mark)), None)
    if foreign is not None:
        raise NotTextError(f"not UTF-8 text: it begins with the byte-order mark of {foreign}", 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Positions of an error do not count the mark, which the decoder has removed.
        at = error.start + len(data) - len(error.object)
        raise NotTextError(f"not UTF-8 text (byte {at})", data.count(b"\n", 0, at) + 1) from None
    if "\0" in text:
        at = text.index("\0")
        raise NotTextError(f"not text: it has a zero byte at character {at}", text.count("\n", 0, at) + 1)
    return text


def json_fault(error: Exception) -> str:
    """The reason why bytes are no JSON, of an error that reading them raised."""
    if isinstance(error, RecursionError):
        return "lists and objects are inside each other too deeply"
    if isinstance(error, UnicodeEncodeError):
        return "it has half of a surrogate pair, which is no character"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "a number has too many digits"
    return str(error)[:200]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is unreadable, not JSON, or not an object.
    """
    try:
        data = path.read_bytes()
        if is_pointer(data):
            raise UserError(f"{path} {NOT_FETCHED}")
        value = json.loads(decode(data))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {json_fault(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value
