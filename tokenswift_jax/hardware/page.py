"""Generated parts of a page: the text between `<!-- name:begin source -->` and `<!-- name:end -->`, and table rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def fill(page: str, name: str, text: str, source: str = "") -> str:
    """The page with `text` between the marks of `name`; the first mark also names the `source` of the figures.

    Raises:
      ValueError: the page does not have these marks exactly once.
    """
    pattern = re.compile(rf"<!-- {name}:begin.*?-->.*?<!-- {name}:end -->", re.DOTALL)
    begin = f"<!-- {name}:begin {source} -->" if source else f"<!-- {name}:begin -->"
    filled, count = pattern.subn(lambda _: f"{begin}\n{text}\n<!-- {name}:end -->", page)
    if count != 1:
        raise ValueError(f"a page needs one pair of marks <!-- {name}:begin --> ... <!-- {name}:end -->, not {count}")
    return filled


def fill_file(path: Path, name: str, text: str) -> None:
    """Writes `text` between the marks of `name` in a page; ValueError as `fill`."""
    path.write_text(fill(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def table(headings: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table with its heading."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
