"""Training documents: the texts in the files that a person names, one after the other."""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import expanded
from tokenswift_jax.prompt import render_chat
from tokenswift_jax.text.reading import NotTextError, decode, is_utf8

SUFFIXES = (".txt", ".jsonl")
_EXAMPLES = 5


class Document(NamedTuple):
    """One text to learn from.

    Args:
      text: the text, not empty.
      place: the file, or file:line, of the text.
      rendered: whether a chat template wrote it, special tokens included.
    """

    text: str
    place: str
    rendered: bool


@dataclasses.dataclass
class Broken:
    """The count of broken lines and files, and the first few of them with the reason.

    Args:
      strict: the first broken line or file raises UserError.
      count: how many are broken.
      examples: the first five, as "place: reason".
    """

    strict: bool = False
    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {reason}")
        if self.strict:
            raise strict_error(self.examples[0])


def strict_error(example: str) -> UserError:
    """The error about the first broken line or file under `strict`."""
    return UserError(
        f"strict accepts no broken data: {example}; mend it, or run without that to skip it", arguments=("strict",)
    )


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The .txt and .jsonl files that files, folders (all below, sorted) and glob patterns name, each once, in order.

    It skips files of other kinds in folders and patterns.

    Raises:
      UserError: a path or pattern matches nothing, a folder or pattern has no .txt or .jsonl file, or a named file is
        of another kind.
    """
    files: dict[Path, None] = {}
    for path in paths:
        files.update(dict.fromkeys(_expand(path)))
    if not files:
        raise UserError("no data; name .txt or .jsonl files, folders or patterns")
    return list(files)


def _expand(path: str | Path) -> list[Path]:
    if not str(path):
        raise UserError("the name of the data is empty; name .txt or .jsonl files, folders or patterns")
    place = expanded(path)
    if place.is_file():
        if not _readable(place):
            raise UserError(f"{path} is neither .txt (one document a file) nor .jsonl (one a line)")
        return [place]
    matches = [place] if place.is_dir() else [Path(name) for name in glob.glob(str(place), recursive=True)]
    if not matches:
        raise UserError(f"no data at {path}: no such file or folder, and no file matches it as a pattern")
    found = {file for match in matches for file in (match.rglob("*") if match.is_dir() else [match])}
    files = sorted(file for file in found if _readable(file) and file.is_file())
    if not files:
        raise UserError(f"no .txt or .jsonl file in {path}")
    return files


def _readable(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_documents(files: Sequence[Path], tokenizer: Any, broken: Broken) -> Iterator[Document]:
    """The documents of .txt files (one a file) and .jsonl files (one a line: `text`, or chat `messages`), in order.

    Memory contains one file or line at a time. The reader skips blank lines and adds broken lines and files to
    `broken`: not UTF-8, not JSON, neither field, wrong types, empty, refused by the tokenizer's chat template.

    Raises:
      UserError: a file cannot be opened, or `broken` is strict and a line or file is broken.
    """
    for file in files:
        try:
            with file.open("rb") as stream:
                pieces = enumerate(stream, 1) if file.suffix.lower() == ".jsonl" else [(None, stream.read())]
                for line, data in pieces:
                    place = str(file) if line is None else f"{file}:{line}"
                    if line is not None and not data.strip():
                        continue
                    try:
                        document = _document(data, place, tokenizer, record=line is not None)
                    except _BrokenError as error:
                        broken.add(place if error.line is None else f"{file}:{error.line}", error.reason)
                    else:
                        yield document
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None


class _BrokenError(Exception):
    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _document(data: bytes, place: str, tokenizer: Any, record: bool) -> Document:
    try:
        text = decode(data)
    except NotTextError as error:
        raise _BrokenError(str(error), None if record else error.line) from None
    rendered = False
    if record:
        text, rendered = _record_text(text, tokenizer)
    if not text.strip():
        raise _BrokenError("no text in it")
    if "\0" in text:  # "\u0000" of JSON
        raise _BrokenError("not text: it has a zero byte")
    if not is_utf8(text):  # "\ud800" is valid JSON but not a character
        raise _BrokenError("half of a surrogate pair in the text")
    return Document(text, place, rendered)


def _record_text(line: str, tokenizer: Any) -> tuple[str, bool]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BrokenError(f"not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        raise _BrokenError("not JSON that can be read") from None
    if not isinstance(record, dict):
        raise _BrokenError(f"an object is needed, not {_kind(record)}")
    # Data sets with both columns fill the one that a record does not use with null or with nothing.
    text, messages = record.get("text"), record.get("messages")
    if messages is not None and (text is None or text == ""):
        return _render(messages, tokenizer), True
    if "text" not in record:
        raise _BrokenError('neither "text" nor "messages" in it')
    if not isinstance(text, str):
        raise _BrokenError(f'"text" has to be a string, not {_kind(text)}')
    return text, False


def _render(messages: Any, tokenizer: Any) -> str:
    try:
        return render_chat(messages, tokenizer, next_turn=False)
    except UserError as error:
        raise _BrokenError(str(error)) from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
