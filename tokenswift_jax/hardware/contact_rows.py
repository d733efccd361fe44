"""Rows of the plans of a device check, from their JSON documents: by device, and the newest of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]
# Fields that distinguish rows about different things.
_KEYS = ("plan", "stage", "section", "model", "kernel", "by", "rows", "group", "head_dim", "step", "length")
_KEYS += ("operation", "option", "round", "text_dtype", "mode", "temperature", "shapes", "library", "product_size")
_KEYS += ("variant",)


def by_device(documents: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
    """Rows by device, with the environment of their stage; of several attempts at the same thing the last."""
    found: dict[str, dict[tuple, Row]] = {}
    for document in documents:
        for stage in _counted(document["stages"]):
            about: Row = {"plan": document["plan"], "plan_date": document.get("date", ""), "stage": stage["stage"]}
            for row in stage["rows"]:
                if row["section"] == "environment":
                    about |= {key: value for key, value in row.items() if key not in ("section", "model", "dtype")}
                    continue
                merged = {**about, **row}
                if row.get("variant") == "joined" and "of_copy_bandwidth" in row:  # compiled as decoding does
                    merged["section"] = "steps"
                key = tuple(merged.get(name) for name in _KEYS)
                found.setdefault(row["device"], {})[key] = merged
    return {device: list(rows.values()) for device, rows in found.items()}


def newest(rows: Sequence[Row]) -> list[Row]:
    """The newest timed row of each device, model, step and length, sorted by them: of the newest day the newest plan's
    (a machine's, mostly), and of that the fastest."""
    best: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        if row["section"] == "steps" and "of_copy_bandwidth" in row:
            key = row["device"], row["model"], row["step"], row["length"]
            if key not in best or _rank(row) > _rank(best[key]):
                best[key] = row
    return [row for _, row in sorted(best.items())]


def _rank(row: Row) -> tuple[str, str, float]:
    return row.get("date", "")[:10], row.get("plan_date", ""), -row["milliseconds"]


def _counted(stages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A stage's last attempt that was done; where none was, all of them."""
    done = {stage["stage"]: stage for stage in stages if stage["status"] == "done"}
    for stage in stages:
        if done.get(stage["stage"], stage) is stage:
            yield stage
