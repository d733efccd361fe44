"""A report of the plans' figures: measurements beside predictions, goals, wrong kernels and texts; no accelerator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contact.plans import PLANS
from tokenswift_jax.hardware.contact_rows import by_device, newest
from tokenswift_jax.hardware.goals import goals
from tokenswift_jax.hardware.page import table
from tokenswift_jax.hardware.replay import replayed
from tokenswift_jax.hardware.summary import goal_line, trouble, verdict

Row = dict[str, Any]
PREDICTIONS = Path(__file__).parents[2] / "benchmarks" / "2026-11-26-predictions-gpu.json"
REPLAYED_TOKENS, ACCEPTANCES = 100_000, (0.4, 0.6, 0.8)


def write_report(files: Sequence[Path], output: Path) -> list[str]:
    """Writes all rows and those that follow from them; returns the lines for a person."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows, lines = [], []
    for device, measured in by_device(documents).items():
        made = list(_computed(measured))
        rows += measured + [{"device": device, **row} for row in made]
        lines += [f"== {device}", f"kernels and texts: {verdict(measured)}", as_table(measured)]
        failed = [row for row in measured if trouble(row)]
        lines += [f"  {row['plan']}, {row['stage']} {row['section']}: {trouble(row)}" for row in failed]
        lines += [f"  {goal_line(row)}" for row in made if row["section"] == "goals"]
    unfinished = [line for document in documents for line in _unfinished(document)]
    lines += ["== not done", *unfinished] if unfinished else []
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return lines


def as_table(rows: Sequence[Row]) -> str:
    """A line per device, model, step and length, with the newest measurement."""
    headings = ("device", "model", "step", "tokens", "ms", "copy bandwidth", "least ms", "predicted ms", "on")
    return table(headings, [_cells(row) for row in newest(rows)])


def _cells(row: Row) -> list[str]:
    predicted = predicted_milliseconds(row)
    return [
        row["device"],
        row["model"],
        row["step"],
        f"{row['length']:,}",
        f"{row['milliseconds']:.2f}",
        f"{row['of_copy_bandwidth']:.0%}",
        f"{row['floor_milliseconds']:.2f}",
        "" if predicted is None else f"{predicted:.2f}",
        f"{row.get('date', '')[:10]} {row['plan']}",
    ]


def predicted_milliseconds(row: Row) -> float | None:
    """The time of a step's row that was predicted before any run; None where nothing was predicted."""
    for each in json.loads(PREDICTIONS.read_text(encoding="utf-8"))["rows"]:
        same = all(each[name] == row[name] for name in ("model", "step", "length"))
        if same and each["device"] in row["device"]:
            return each["milliseconds"]
    return None


def _computed(measured: Sequence[Row]) -> Iterator[Row]:
    timed = newest(measured)
    long = [
        {"section": "replay", **row}
        for model in dict.fromkeys(row["model"] for row in timed)
        for row in replayed(timed, model, REPLAYED_TOKENS, ACCEPTANCES)
    ]
    yield from long
    for row in goals([*timed, *long], measured):
        yield {"section": "goals", **row}


def _unfinished(document: dict[str, Any]) -> Iterator[str]:
    done = {stage["stage"] for stage in document["stages"] if stage["status"] == "done"}
    latest = {stage["stage"]: stage for stage in document["stages"]}
    for stage in PLANS[document["plan"]]:
        if stage.name not in done:
            status = latest[stage.name]["status"] if stage.name in latest else "not started"
            yield f"  {document['plan']}: {stage.name}: {status}"
    for note in document["notes"]:
        yield f"  {document['plan']}: {note}"
