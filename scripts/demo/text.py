"""Book text in two dresses: unwrapped paragraphs, and the files' own hard-wrapped lines."""

from __future__ import annotations

import re
from pathlib import Path


def read_books(folder: Path) -> dict[str, str]:
    """The folder's *.txt files by stem, in name order."""
    books = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    if not books:
        raise SystemExit(f"train_demo: no *.txt file in {folder}")
    return books


def unwrap(text: str, wrap_column: int) -> str:
    """Paragraphs on one line each, at most one empty line between them, blanks collapsed.

    A line continues the one before it when that one reaches `wrap_column` characters and this one is not
    indented; shorter lines (verse, headings, letters) keep their breaks.
    """
    out: list[str] = []
    joinable = False
    for raw in text.split("\n"):
        line = re.sub(r"[ \t]+", " ", raw).strip()
        if not line:
            if out and out[-1]:
                out.append("")
            joinable = False
            continue
        if joinable and not raw[0].isspace():
            out[-1] += " " + line
        else:
            out.append(line)
        joinable = len(raw) >= wrap_column
    return "\n".join(out).strip() + "\n"


def keep_wrapped(text: str) -> str:
    """The file's own lines; runs of empty lines cut to one and runs of blanks to two."""
    return re.sub(r" {3,}", "  ", re.sub(r"\n{3,}", "\n\n", text)).strip() + "\n"
