"""The goals of decoding in bfloat16 on one GPU, compared with measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenswift_jax.engine.row_costs import NARROW, NO_EXTRA_TIME, row_costs_on
from tokenswift_jax.hardware.shapes import config_of

Row = dict[str, Any]
PLAIN_BANDWIDTH = 0.85  # of the copy bandwidth, at least, from LONG tokens on
PLAIN_MODELS = ("Llama-3.1-8B", "Qwen2.5-14B")  # other models have a share and no goal
WIDE = "verify-64"
# Of a plain step's time, at most: the roofline's own ratio at the length, times this. After a long text 64 rows of
# grouped heads are bound by arithmetic, and no kernel can do better; those of other heads cost next to nothing.
ROOFLINE_ROOM = 1.05
# Of the rows that `auto` is offered, even where the roofline asks for less.
OFFERED_COST = NO_EXTRA_TIME
LONG = 16384
REPLAY_ACCEPTANCE, REPLAY_SECONDS, REPLAY_MODEL = 0.6, 300.0, "Llama-3.1-8B"
TOKENS = 100_000  # of the text that the goals are for


def goals(rows: Sequence[Row], others: Sequence[Row] = ()) -> Iterator[Row]:
    """A row a goal and model: its bound, the worst value measured (of a replay the best schedule's), and whether it is
    met; or why nothing can be compared. A row without a bound has the measurement of a model without a goal.

    Steps are judged that were timed on their model's newest day: those of earlier days are of older code.

    Args:
      rows: of the sections `steps` and `replay`; of one device.
      others: rows of that device that are not judged; a plain step of the same process as a row's may be one of them.
    """
    timed, beside = ([row for row in some if row["section"] == "steps" and "step" in row] for some in (rows, others))
    for model in dict.fromkeys(row["model"] for row in timed) or (REPLAY_MODEL,):
        of_model = ([row for row in some if row["model"] == model] for some in (timed, beside))
        yield from (row | {"model": model} for row in _of_model(model, *of_model))
    replayed = [
        row["seconds"]
        for row in rows
        if row["section"] == "replay"
        and row["model"] == REPLAY_MODEL
        and row["acceptance_rate"] == REPLAY_ACCEPTANCE
        and row["tokens"] >= TOKENS
    ]
    name = f"seconds of {TOKENS:,} tokens, replayed at an acceptance of {REPLAY_ACCEPTANCE}"
    yield _row(name, REPLAY_SECONDS, min(replayed, default=None), most=True) | {"model": REPLAY_MODEL}


def _of_model(model: str, timed: list[Row], others: list[Row]) -> Iterator[Row]:
    newest = max((_day(row) for row in timed), default="")
    long = [row for row in timed if row["length"] >= LONG and _day(row) == newest]
    plain = [row for row in long if row["step"] == "plain"]
    shares = [row["of_copy_bandwidth"] for row in plain]
    bound = PLAIN_BANDWIDTH if model in PLAIN_MODELS else None
    name = f"plain decoding's share of the copy bandwidth from {LONG:,} tokens on"
    yield _row(name, bound, min(shares, default=None), most=False)
    plain += [row for row in others if row["step"] == "plain"]
    offered = [row for row in long if row["step"] in _offered(model, row)]
    yield _over_plain("the rows that auto is offered", offered, plain, OFFERED_COST)
    yield _over_plain(WIDE, [row for row in long if row["step"] == WIDE], plain, 0.0)


def _day(row: Row) -> str:
    return row.get("date", "")[:10]


def _offered(model: str, row: Row) -> set[str]:
    """The verifications that `auto` is offered at a row's length, on its device, for a text that grows from LONG
    positions by TOKENS; NARROW rows where the device's rates are unknown."""
    costs = row_costs_on(row.get("platform", "gpu"), row.get("device", ""), config_of(model))
    length = row["length"]
    budgets = (NARROW - 1,) if costs is None else costs.node_budgets(length, max(length, LONG + TOKENS))
    return {f"verify-{budget + 1}" for budget in budgets}


def _over_plain(name: str, verified: list[Row], plain: list[Row], cost: float) -> Row:
    """The verification that is the furthest above its bound, in plain steps; `cost` is allowed at every length."""
    found = []
    for several in verified:
        one = _beside(several, plain)
        if one is not None:
            least = several["floor_milliseconds"] / one["floor_milliseconds"]
            found.append((several["milliseconds"] / one["milliseconds"], max(cost, ROOFLINE_ROOM * least), several))
    value, bound, worst = max(found, key=lambda each: each[0] / each[1], default=(None, None, None))
    compared = _row(f"{name} over a plain step from {LONG:,} tokens on", bound, value, most=True)
    return compared if worst is None else compared | {"length": worst["length"], "step": worst["step"]}


def _beside(several: Row, plain: list[Row]) -> Row | None:
    """The plain step after as many tokens, of the same stage of the same plan where that has one."""
    found = [row for row in plain if row["length"] == several["length"]]
    stage = several.get("plan"), several.get("stage")
    return max(found, key=lambda row: (row.get("plan"), row.get("stage")) == stage, default=None)


def _row(goal: str, bound: float | None, value: float | None, most: bool) -> Row:
    row: Row = {"goal": goal}
    if bound is not None:
        row["at_most" if most else "at_least"] = bound
    if value is None:
        return row | {"missing": "no row of steps or replay to compare with"}
    row["value"] = value
    return row if bound is None else row | {"met": value <= bound if most else value >= bound}
