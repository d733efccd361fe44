"""The documents of a folder: one for each text file, and one for each record of a JSON Lines file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import read_text
from tokenswift_jax.text.reading import is_utf8

TEXT, RECORDS = (".txt", ".md"), ".jsonl"
_LONGEST = 200  # bytes of a name, so that the names of its files have at most the 255 that file systems allow
_A_RECORD = '{"prompt": "..."}'


@dataclass(frozen=True)
class Document:
    """One prompt of the folder.

    Attributes:
      name: the file's name without its ending; of a record also its line, as in `questions-3`.
      path: the file.
      line: the line of a record, counted from 1; None: the whole file is the prompt.
    """

    name: str
    path: Path
    line: int | None = None

    @property
    def sequence(self) -> int:
        """The number of the document's random sequence (`SamplingConfig.sequence`), from its name alone: neither the
        worker nor the other documents change it."""
        return int.from_bytes(hashlib.sha256(os.fsencode(self.name)).digest()[:4], "big") & 0x7FFFFFFF

    def prompt(self) -> str:
        """The exact text of the prompt.

        Raises:
          UserError: the file is unreadable or not UTF-8 text, or the record is not one.
        """
        return self.prompt_in(read_text(str(self.path)).split("\n"))

    def prompt_in(self, lines: Sequence[str]) -> str:
        """The exact text of the prompt in the `lines` of its file.

        Raises:
          UserError: the record is not one.
        """
        if self.line is None:
            return "\n".join(lines)
        try:
            record = json.loads(lines[self.line - 1])
        except (ValueError, IndexError, RecursionError):
            record = None
        prompt = record.get("prompt") if isinstance(record, dict) else None
        if not isinstance(prompt, str) or not is_utf8(prompt):
            raise UserError(f"line {self.line} of {self.path} is not a record with a text such as {_A_RECORD}")
        return prompt


def documents_in(folder: Path) -> tuple[list[Document], list[str]]:
    """The documents of a folder in the order of their names, and the names of files that are none.

    Files whose names begin with a dot are neither. A JSON Lines file that cannot be read is one document, whose
    `prompt` says why.

    Raises:
      UserError: there is no such folder or no document in it, two documents have one name, or a name is too long.
    """
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"documents {folder}: {error.strerror}", arguments=("documents",)) from None
    found, others = dict[str, Document](), []
    for path in files:
        ending = path.suffix.lower()
        if ending not in (*TEXT, RECORDS) or path.is_dir():
            others.append(path.name)
            continue
        for document in [Document(path.stem, path)] if ending in TEXT else _records(path):
            if (other := found.get(document.name)) is not None:
                both = f"{other.path.name} and {path.name}"
                raise UserError(f"{both} would both write {document.name}.txt; rename one of them", ("documents",))
            if len(os.fsencode(document.name)) > _LONGEST:
                raise UserError(f"the name {document.name[:20]}... has more than {_LONGEST} bytes; give a shorter one")
            found[document.name] = document
    if not found:
        endings = ", ".join((*TEXT, RECORDS))
        raise UserError(f"documents {folder} has no document; their names end in {endings}", arguments=("documents",))
    return [found[name] for name in sorted(found)], others


def prompt_hash(prompt: str) -> str:
    """A hash that identifies a prompt, 64 hex digits."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def prompt_hashes(documents: Iterable[Document]) -> dict[str, str]:
    """The hash of each document's prompt, by the document's name; documents without a prompt are left out."""
    by_file, found = dict[Path, list[Document]](), dict[str, str]()
    for document in documents:
        by_file.setdefault(document.path, []).append(document)
    for path, ones in by_file.items():
        with contextlib.suppress(UserError):
            # Without one read for all records, n records cost n reads of the whole file.
            lines = read_text(str(path)).split("\n")
            for document in ones:
                with contextlib.suppress(UserError):
                    found[document.name] = prompt_hash(document.prompt_in(lines))
    return found


def unused_fields(documents: Iterable[Document]) -> list[str]:
    """The names of fields of records that no text depends on: every field but the prompt. Broken records have none."""
    found = set[str]()
    for path in dict.fromkeys(document.path for document in documents if document.line is not None):
        for line in read_text(str(path)).split("\n"):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                found |= record.keys() if isinstance(record, dict) else set()
    return sorted(found - {"prompt"})


def _records(path: Path) -> list[Document]:
    try:
        lines = read_text(str(path)).split("\n")
    except UserError:
        return [Document(path.stem, path)]
    return [Document(f"{path.stem}-{number}", path, number) for number, line in enumerate(lines, 1) if line.strip()]
