"""The report's rows as the table of a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def write_table(rows: list[dict[str, Any]], page: Path) -> None:
    """Puts the table of the rows between the page's marks; ValueError where it has none."""
    put_between(page, "aot", as_table(rows))


def put_between(page: Path, name: str, table: str) -> None:
    """Puts a table between a page's marks `<!-- name:begin -->` and `<!-- name:end -->`; ValueError without them."""
    text, begin, end = page.read_text(encoding="utf-8"), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no {begin} ... {end}")
    whole = f"{begin}\n{table}\n{end}"
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: whole, text, flags=re.DOTALL), encoding="utf-8")


def as_table(rows: list[dict[str, Any]]) -> str:
    """One line a program, in the order of target, model and step."""
    heading = "| target | model | devices | step | memory | temporary | copied | moved | registers (spilled) | "
    lengths = [bound["length"] for bound in rows[0]["roofline"]]
    heading += " | ".join(f"{length:,}" for length in lengths) + " |"
    lines = [heading, "| --- " * heading.count(" | ") + "| --- |"]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    kernels = row.get("kernels", {})
    most = max((kernel["registers"] for kernel in kernels.values()), default=None)
    spilled = sum(kernel["spilled_bytes"] for kernel in kernels.values())
    cells = [
        row["target"],
        row["model"],
        str(row["devices"]),
        row["step"] + ("" if row["layers_compiled"] == row["layers"] else f" ({row['layers_compiled']} layers)"),
        f"{row['share_of_memory']:.0%}",
        f"{row['temporary_share']:.2%}",
        f"{row['copied_share']:.1%}",
        f"{row['moved_share']:.2f}",
        "" if most is None else f"{most} ({spilled})",
        *[f"{bound['milliseconds']:.2f}" for bound in row["roofline"]],
    ]
    return "| " + " | ".join(cells) + " |"
