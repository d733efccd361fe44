"""The goals of decoding an 8B model in bfloat16 on one H200, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PLAIN_BANDWIDTH = 0.8  # of the copy bandwidth, at least, at every length
ROWS_COST = {"verify-16": 1.1, "verify-64": 1.2}  # of a plain step's time, at most, from LONG tokens on
LONG = 16384
REPLAY_ACCEPTANCE, REPLAY_SECONDS = 0.6, 300.0  # a text of 100,000 tokens


def held_against(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a goal: its bound, the worst value measured (of a replay the best schedule's), and whether it is met; or
    what is missing to say so."""
    steps = {(row["step"], row["length"]): row for row in rows if row["section"] == "steps" and "step" in row}
    plain = {length: row for (name, length), row in steps.items() if name == "plain"}
    shares = [row["of_copy_bandwidth"] for row in plain.values()]
    yield _row("plain decoding's share of the copy bandwidth", PLAIN_BANDWIDTH, min(shares, default=None), most=False)
    for name, bound in ROWS_COST.items():
        costs = [
            steps[name, length]["milliseconds"] / row["milliseconds"]
            for length, row in plain.items()
            if length >= LONG and (name, length) in steps
        ]
        yield _row(f"{name} over a plain step from {LONG:,} tokens on", bound, max(costs, default=None), most=True)
    replayed = [
        row["seconds"]
        for row in rows
        if row["section"] == "replay" and row.get("acceptance_rate") == REPLAY_ACCEPTANCE and row["tokens"] >= 100_000
    ]
    name = f"seconds of 100,000 tokens, replayed at an acceptance of {REPLAY_ACCEPTANCE}"
    yield _row(name, REPLAY_SECONDS, min(replayed, default=None), most=True)


def _row(goal: str, bound: float, value: float | None, most: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"goal": goal, "at_most" if most else "at_least": bound}
    if value is None:
        return row | {"missing": "no row of steps or replay to hold it against"}
    return row | {"value": value, "met": value <= bound if most else value >= bound}
