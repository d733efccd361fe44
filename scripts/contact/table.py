"""The plans' figures as the table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.table import put_between

from contact.predictions import gpu_of, step_milliseconds

_HEADING = "| device | model | step | tokens | ms | copy bandwidth | least ms | predicted ms |"


def write_table(rows: Sequence[dict[str, Any]], page: Path) -> None:
    """Puts the table of the steps among the report's rows between the page's marks; ValueError where it has none."""
    put_between(page, "contact", as_table(rows))


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per device, model, step and length; of several measurements of the same thing the fastest."""
    best: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for row in rows:
        if row["section"] == "steps" and "milliseconds" in row:
            key = row["device"], row["model"], row["step"], row["length"]
            if key not in best or row["milliseconds"] < best[key]["milliseconds"]:
                best[key] = row
    lines = [_HEADING, "| --- " * (_HEADING.count("|") - 1) + "|"]
    return "\n".join(lines + [_line(row) for _, row in sorted(best.items())])


def _line(row: dict[str, Any]) -> str:
    gpu = gpu_of(row["device"])
    predicted = None if gpu is None else step_milliseconds(row["model"], gpu, row["step"], row["length"])
    cells = [
        row["device"],
        row["model"],
        row["step"],
        f"{row['length']:,}",
        f"{row['milliseconds']:.2f}",
        f"{row['of_copy_bandwidth']:.0%}",
        f"{row['floor_milliseconds']:.2f}",
        "" if predicted is None else f"{predicted:.2f}",
    ]
    return f"| {' | '.join(cells)} |"
