"""A report of the plans' figures: predictions beside measurements, goals, the next step. It needs no accelerator."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hardware.goals import held_against
from hardware.replay import replayed

from contact.plans import DEFAULTS, LARGE, LENGTH, PLANS
from contact.predictions import attention_microseconds, gpu_of, step_milliseconds

Row = dict[str, Any]
# Of the copy bandwidth, of a plain step of the 8B after LENGTH tokens: what its matrix products are worth.
GOOD_SHARE, POOR_SHARE = 0.80, 0.55
WORTH_MICROSECONDS = 5.0  # an iteration, that an option of XLA must save
# What tells rows about different things apart.
_KEYS = ("stage", "section", "model", "kernel", "by", "rows", "group", "head_dim", "step", "length", "operation")
_KEYS += ("option", "round", "text_dtype", "mode", "shapes", "library", "product_size", "variant")


def write_report(files: Sequence[Path], output: Path) -> list[str]:
    """Writes all rows, as the device check has them, with what follows from them; returns the lines for a person."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows, lines = [], []
    for device, measured in _by_device(documents).items():
        made = list(_computed(measured))
        rows += measured + [{"device": device, **row} for row in made]
        lines += [f"== {device}", *_lines(measured, made)]
    unfinished = [line for document in documents for line in _unfinished(document)]
    lines += ["== not done", *unfinished] if unfinished else []
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return lines


def _by_device(documents: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
    """Rows by device, with the environment of their stage; of several attempts at the same thing the last."""
    found: dict[str, dict[tuple, Row]] = {}
    for document in documents:
        for stage in _that_count(document["stages"]):
            about: Row = {"plan": document["plan"], "stage": stage["stage"]}
            for row in stage["rows"]:
                if row["section"] == "environment":
                    about |= {key: value for key, value in row.items() if key not in ("section", "model", "dtype")}
                    continue
                whole = {**about, **row}
                key = tuple(whole.get(name) for name in _KEYS)
                found.setdefault(row["device"], {})[key] = whole
    return {device: list(rows.values()) for device, rows in found.items()}


def _that_count(stages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A stage's last attempt that was done; where none was, all of them."""
    done = {stage["stage"]: stage for stage in stages if stage["status"] == "done"}
    for stage in stages:
        if done.get(stage["stage"], stage) is stage:
            yield stage


def _computed(measured: Sequence[Row]) -> Iterator[Row]:
    models = dict.fromkeys(row["model"] for row in measured if row["section"] == "steps" and "milliseconds" in row)
    timed = [row for row in measured if row["section"] == "steps" and "milliseconds" in row]
    computed = [
        {"section": "replay", **row}
        for model in models
        for row in replayed(timed, model, DEFAULTS["replayed_tokens"], DEFAULTS["acceptances"])
    ]
    yield from computed
    for row in held_against([*timed, *computed]):
        yield {"section": "goals", **row}
    for row in measured:
        yield from _beside_prediction(row)
    for row in _decisions(measured):
        yield {"section": "decisions", **row}


def _beside_prediction(row: Row) -> Iterator[Row]:
    gpu = gpu_of(row["device"])
    if gpu is None:
        return
    about = {"section": "predictions", "model": row["model"], "length": row.get("length")}
    if row["section"] == "steps" and "milliseconds" in row:
        expected = step_milliseconds(row["model"], gpu, row["step"], row["length"])
        if expected is not None:
            yield {**about, "step": row["step"], "unit": "ms", "predicted": expected, "measured": row["milliseconds"]}
    if row["section"] == "kernels" and row.get("kernel") == "tree_attention" and "microseconds" in row:
        expected = attention_microseconds(row["model"], gpu, row["rows"], row["length"])
        if expected is not None:
            about |= {"step": "tree_attention, 1 row", "unit": "us"}
            yield {**about, "predicted": expected, "measured": row["microseconds"]}


def _decisions(rows: Sequence[Row]) -> Iterator[Row]:
    """A row a question that the plans were run for, with what answers it and what follows."""
    wrong = [row for row in rows if row.get("good") is False or row.get("audit_failed")]
    texts = [row for row in rows if row["section"] == "demo" and "mode" in row]
    # In float32 nothing excuses another text; in narrower types the audit tells ties from errors.
    wrong += [
        row for row in texts if row["text_dtype"] == "float32" and row["leading_tokens_of_the_first"] < row["tokens"]
    ]
    checked = [row for row in rows if "relative_error" in row or row in texts]
    if not checked:
        then = "nothing was checked: run that first"
    elif wrong:
        then = "find out why before anything else: " + "; ".join(_name(row) for row in wrong)
    else:
        then = f"all {len(checked)} that were checked: go on"
    yield {"question": "are kernels and texts right", "then": then}
    yield _about_products(rows)
    for option, name in (("while", "loops in graphs"), ("no-pdl", "kernels launched one by one (PDL off)")):
        yield _about_option([row for row in rows if row.get("option") == option], option, name)


def _about_products(rows: Sequence[Row]) -> Row:
    question = f"are XLA's matrix products good enough (plain {LARGE} after {LENGTH:,} tokens)"
    found = [row for row in rows if row["section"] == "steps" and row.get("step") == "plain"]
    found = [row for row in found if row["model"] == LARGE and row.get("length") == LENGTH]
    if not found:
        return {"question": question, "then": "not measured"}
    share = found[-1]["of_copy_bandwidth"]
    fewer = "fewer kernels a layer first (q, k, v and gate, up as one weight each; residual and norm, RoPE and the "
    fewer += "cache's write in one kernel each; attention's merge inside it)"
    if share >= GOOD_SHARE:
        then = f"they are: {fewer}, and no products of our own"
    elif share >= POOR_SHARE:
        then = f"as predicted: {fewer}, then streaming products of our own"
    else:
        then = "they are not: look at autotune_results first (k and v, splits, cuBLASLt's choices), then streaming "
        then += "products of our own for gate, up and down"
    return {"question": question, "share": share, "then": then}


def _about_option(rows: Sequence[Row], option: str, name: str) -> Row:
    question, saved = f"{name}: is it faster", [row["saved_microseconds"] for row in rows if "round" in row]
    if len(saved) < 3:
        then = f"no: {len(saved)} of 3 rounds were run, see the stage's status" if rows else "not measured"
        return {"question": question, "then": then}
    median = statistics.median(saved)
    if median <= WORTH_MICROSECONDS:
        then = f"no: {median:.1f} us an iteration"
    elif option == "while":
        then = f"yes, {median:.1f} us an iteration, and no crash: make it the default"
    else:
        then = f"yes, {median:.1f} us an iteration: report it to openxla/xla, and switch it off"
    return {"question": question, "saved_microseconds": saved, "then": then}


def _name(row: Row) -> str:
    return " ".join(str(row[key]) for key in ("section", "kernel", "rows", "text_dtype", "mode") if key in row)


def _lines(measured: Sequence[Row], made: Sequence[Row]) -> list[str]:
    lines = []
    for row in measured:
        if row["section"] == "copy" and "bytes_a_second" in row:
            rate = f"{row['operations_a_second'] / 1e12:.1f} TFLOP/s"
            lines.append(f"copy {row['bytes_a_second'] / 1e12:.3f} TB/s, products {rate} (stage {row['stage']})")
    lines += ["model and step, tokens: milliseconds (share of the copy bandwidth; over the floor)"]
    for row in measured:
        if row["section"] == "steps" and "milliseconds" in row:
            over = row["milliseconds"] / row["floor_milliseconds"]
            lines.append(
                f"  {row['model']} {row['step']}, {row['length']:,}: {row['milliseconds']:.3f} "
                f"({row['of_copy_bandwidth']:.0%}; {over:.2f})"
            )
    lines += [f"  {row['stage']} {row['section']}: {row.get('error') or row['missing']}" for row in _troubles(measured)]
    for section, heading in (("predictions", "predicted and measured"), ("replay", ""), ("goals", "goals")):
        found = [row for row in made if row["section"] == section]
        if found and heading:
            lines.append(heading)
        lines += [f"  {said}" for said in map(_said, found) if said]
    lines.append("what follows")
    return lines + [f"  {row['question']}? {row['then']}" for row in made if row["section"] == "decisions"]


def _troubles(measured: Sequence[Row]) -> list[Row]:
    return [row for row in measured if "error" in row or "missing" in row]


def _said(row: Row) -> str | None:
    if row["section"] == "predictions":
        ratio = row["measured"] / row["predicted"]
        what = f"{row['model']} {row['step']}, {row['length']:,}"
        return f"{what}: {row['predicted']:.2f} {row['unit']} predicted, {row['measured']:.2f} measured ({ratio:.2f})"
    if row["section"] == "goals":
        bound = next((f"{key.replace('_', ' ')} {row[key]:.3g}" for key in ("at_least", "at_most") if key in row), "")
        if "missing" in row:
            return f"{row['model']}, {row['goal']}: {row['missing']}"
        verdict = {True: "met", False: "NOT met", None: "no goal"}[row.get("met")]
        return f"{row['model']}, {row['goal']}: {row['value']:.3g} {f'({bound}) ' if bound else ''}{verdict}"
    return None


def _unfinished(document: dict[str, Any]) -> Iterator[str]:
    done = {stage["stage"] for stage in document["stages"] if stage["status"] == "done"}
    latest = {stage["stage"]: stage for stage in document["stages"]}
    for stage in PLANS[document["plan"]]:
        if stage.name not in done:
            status = latest[stage.name]["status"] if stage.name in latest else "not begun"
            yield f"  {document['plan']}: {stage.name}: {status}"
    for note in document["notes"]:
        yield f"  {document['plan']}: {note}"
