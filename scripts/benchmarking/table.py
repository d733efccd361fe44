"""The rows as a person reads them."""

from __future__ import annotations

from typing import Any

_HEADINGS = (
    "section",
    "prefix",
    "T",
    "contender",
    "ms/token (min..max)",
    "tokens/s",
    "tokens/pass",
    "x plain",
    "x transformers",
    "prefill s",
    "compile s",
    "note",
)


def format_table(rows: list[dict[str, Any]]) -> str:
    """An aligned table; medians, with the spread of the time."""
    cells = [_HEADINGS, *[_cells(row) for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    time = row["ms_per_token"]
    contender = row["contender"]
    if row["node_budget"] is not None:
        contender += f", {row['node_budget']} nodes"
    return (
        row["section"],
        f"{row['prefix']:,}",
        f"{row['temperature']:g}",
        contender,
        f"{time['median']:.3f} ({time['min']:.3f}..{time['max']:.3f})",
        _median(row, "tokens_per_second", ".0f"),
        _median(row, "tokens_per_iteration", ".2f"),
        _median(row, "speed_vs_autoregressive", ".2f"),
        _median(row, "speed_vs_transformers", ".2f"),
        _median(row, "prefill_seconds", ".2f"),
        f"{row['compile_seconds_excluded']:.1f}",
        _note(row),
    )


def _drafting(row: dict[str, Any]) -> str:
    rate, share = row["acceptance_rate"], row["ngram_share"]
    alpha = rate["median"] if isinstance(rate, dict) else rate
    return f"alpha {alpha:.3f}" + ("" if share is None else f", n-grams {share:.0%} of it")


def _median(row: dict[str, Any], name: str, form: str) -> str:
    return format(row[name]["median"], form) if name in row else ""


def _note(row: dict[str, Any]) -> str:
    notes = []
    if "text" in row:
        notes.append(row["text"])
    if "wall_speed_vs_autoregressive" in row:
        ratio = row["wall_speed_vs_autoregressive"]
        notes.append(f"x plain, trials included: {ratio['median']:.3f} ({ratio['min']:.3f}..{ratio['max']:.3f})")
    for name, ratio in row.items():
        if name.startswith("time_vs_capacity_"):
            notes.append(f"time x {ratio['median']:.3f} of capacity {int(name.rsplit('_', 1)[1]):,}")
    if "host_share" in row:
        share, caller = row["host_share"], row["caller_share"]
        notes.append(f"host {share['median']:.2%} of the time; calling thread busy {caller['median']:.2%}")
    if "acceptance_rate" in row:
        notes.append(_drafting(row))
    if row.get("audit"):
        audit = row["audit"]
        notes.append(f"audit: {audit['mismatches']} of {audit['positions']:,} draws differ")
    equal = row.get("leading_tokens_equal_to_autoregressive")
    if equal is not None and equal < row["new_tokens"]:
        notes.append(f"differs from plain decoding after {equal} tokens")
    return "; ".join(notes)
