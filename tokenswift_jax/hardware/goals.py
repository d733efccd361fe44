"""The goals of decoding in bfloat16 on one GPU, compared with measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PLAIN_BANDWIDTH = 0.85  # of the copy bandwidth, at least, from LONG tokens on
PLAIN_MODELS = ("Llama-3.1-8B", "Qwen2.5-14B")  # other models have a share and no goal
ROWS = ("verify-16", "verify-64")
# Of a plain step's time, at most: the roofline's own ratio at the length, times this. After a long text 64 rows of
# grouped heads are bound by arithmetic, and no kernel can do better; those of other heads cost next to nothing.
ROOFLINE_ROOM = 1.05
ROWS_COST = {"verify-16": 1.1}  # allowed where the roofline asks for less
LONG = 16384
REPLAY_ACCEPTANCE, REPLAY_SECONDS, REPLAY_MODEL = 0.6, 300.0, "Llama-3.1-8B"  # a text of 100,000 tokens


def goals(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a goal and model: its bound, the worst value measured (of a replay the best schedule's), and whether it is
    met; or why nothing can be compared. A row without a bound has the measurement of a model without a goal.

    Args:
      rows: of the sections `steps` and `replay`; of one device.
    """
    timed = [row for row in rows if row["section"] == "steps" and "step" in row]
    for model in dict.fromkeys(row["model"] for row in timed) or (REPLAY_MODEL,):
        yield from (row | {"model": model} for row in _of_model(model, [row for row in timed if row["model"] == model]))
    replayed = [
        row["seconds"]
        for row in rows
        if row["section"] == "replay"
        and row["model"] == REPLAY_MODEL
        and row["acceptance_rate"] == REPLAY_ACCEPTANCE
        and row["tokens"] >= 100_000
    ]
    name = f"seconds of 100,000 tokens, replayed at an acceptance of {REPLAY_ACCEPTANCE}"
    yield _row(name, REPLAY_SECONDS, min(replayed, default=None), most=True) | {"model": REPLAY_MODEL}


def _of_model(model: str, timed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    long = [row for row in timed if row["length"] >= LONG]
    plain = [row for row in long if row["step"] == "plain"]
    shares = [row["of_copy_bandwidth"] for row in plain]
    bound = PLAIN_BANDWIDTH if model in PLAIN_MODELS else None
    name = f"plain decoding's share of the copy bandwidth from {LONG:,} tokens on"
    yield _row(name, bound, min(shares, default=None), most=False)
    for name in ROWS:
        found = []
        for several in (row for row in long if row["step"] == name):
            one = _beside(several, plain)
            if one is not None:
                least = several["floor_milliseconds"] / one["floor_milliseconds"]
                value = several["milliseconds"] / one["milliseconds"]
                found.append((value, max(ROWS_COST.get(name, 0.0), ROOFLINE_ROOM * least), several["length"]))
        value, bound, length = max(found, key=lambda each: each[0] / each[1], default=(None, None, None))
        compared = _row(f"{name} over a plain step from {LONG:,} tokens on", bound, value, most=True)
        yield compared if length is None else compared | {"length": length}


def _beside(several: dict[str, Any], plain: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The plain step after as many tokens, of the same stage where that has one."""
    found = [row for row in plain if row["length"] == several["length"]]
    return max(found, key=lambda row: row.get("stage") == several.get("stage"), default=None)


def _row(goal: str, bound: float | None, value: float | None, most: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"goal": goal}
    if bound is not None:
        row["at_most" if most else "at_least"] = bound
    if value is None:
        return row | {"missing": "no row of steps or replay to compare with"}
    row["value"] = value
    return row if bound is None else row | {"met": value <= bound if most else value >= bound}
