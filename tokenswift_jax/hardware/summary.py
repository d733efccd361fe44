"""A device check's rows for a person: whether kernels and texts are right, which goals are met, which rows lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def verdict(rows: Sequence[Row]) -> str:
    """Whether all kernels and texts among the rows are right; the wrong ones."""
    texts = [row for row in rows if row["section"] == "demo" and "mode" in row]
    checked = [row for row in rows if "relative_error" in row or row in texts]
    wrong = [row for row in rows if row.get("good") is False or row.get("audit_failed")]
    # A text that ends with an error may have met a token that no model draws.
    wrong += [row for row in rows if row["section"] in ("demo", "kernels") and "error" in row]
    # In float32 any other text is an error; in narrower types the audit tells ties from errors.
    wrong += [
        row for row in texts if row["text_dtype"] == "float32" and row["leading_tokens_of_the_first"] < row["tokens"]
    ]
    if not wrong:
        return f"all {len(checked)} right" if checked else "none checked"
    named = ("section", "kernel", "rows", "text_dtype", "mode", "error")
    return "WRONG: " + "; ".join(" ".join(str(row[key]) for key in named if key in row) for row in wrong)


def trouble(row: Row) -> str | None:
    """Why a row has no figures; None if it has."""
    return row.get("error") or row.get("missing")


def goal_line(row: Row) -> str:
    """A row of `goals` as a line."""
    about = f"{row['model']}, {row['goal']}"
    if "step" in row:
        about += f", the worst {row['step']} after {row['length']:,}"
    if "missing" in row:
        return f"{about}: {row['missing']}"
    bound = next((f" ({key.replace('_', ' ')} {row[key]:.3g})" for key in ("at_least", "at_most") if key in row), "")
    verdict = {True: "met", False: "NOT met", None: "no goal"}[row.get("met")]
    return f"{about}: {row['value']:.3g}{bound} {verdict}"
