"""The text of books in two forms: unwrapped paragraphs, and the hard-wrapped lines of the files."""

from __future__ import annotations

import re
from pathlib import Path

from tokenswift_jax.errors import UserError


def read_books(folder: Path) -> dict[str, str]:
    """The folder's *.txt files by stem, in name order; UserError if there is none or one cannot be read."""
    try:
        books = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the books in {folder}: {error}") from None
    if not books:
        raise UserError(f"no *.txt file in {folder}")
    return books


def write_books(source: Path, folder: Path, wrap_column: int, wrapped_every: int | None) -> None:
    """Writes the books of `source` to `folder`, unwrapped but for every `wrapped_every`-th, which keeps its lines.

    Only files that differ are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    books = read_books(source)
    for path in folder.glob("*.txt"):
        if path.stem not in books:
            path.unlink()
    for number, (name, text) in enumerate(books.items(), 1):
        keeps = wrapped_every is not None and number % wrapped_every == 0
        written = keep_wrapped(text) if keeps else unwrap(text, wrap_column)
        path = folder / f"{name}.txt"
        if not path.exists() or path.read_text(encoding="utf-8") != written:
            path.write_text(written, encoding="utf-8")


def unwrap(text: str, wrap_column: int) -> str:
    """Paragraphs on one line each, at most one empty line between them, blanks collapsed.

    A line continues the one before it when that one reaches `wrap_column` characters and this one is not
    indented; shorter lines (verse, headings, letters) keep their breaks.
    """
    out: list[str] = []
    joinable = False
    for raw in text.split("\n"):
        line = re.sub(r"[ \t]+", " ", raw).strip()
        if line and joinable and not raw[0].isspace():
            out[-1] += " " + line
        elif line or (out and out[-1]):
            out.append(line)
        joinable = bool(line) and len(raw) >= wrap_column
    return "\n".join(out).strip() + "\n"


def keep_wrapped(text: str) -> str:
    """The file's own lines; runs of empty lines cut to one and runs of blanks to two."""
    return re.sub(r" {3,}", "  ", re.sub(r"\n{3,}", "\n\n", text)).strip() + "\n"
