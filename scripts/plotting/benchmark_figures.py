"""Figures of the benchmark's rows: the protocol's texts over their length, speedups, ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking.settings import CONTENDERS

from plotting.canvas import Panel, Row, bars, colours, write_figure

_COLOUR = colours(CONTENDERS)
_PLAIN = "autoregressive"
Texts = dict[tuple[Any, ...], list[Row]]


def figures(rows: Sequence[Row]) -> dict[str, Callable[[Path], None]]:
    """What can be drawn of these rows: names of pictures, and how to write each.

    Rows of `--quick` measure nothing and are passed over; of two rows of one setting the later one counts.
    """
    kept = [row for row in rows if "section" in row and row.get("quick") is False]
    texts = _texts(kept)
    long = [row for own in texts.values() for row in own]
    drawn: dict[str, Callable[[Path], None]] = {}
    if long:
        drawn["protocol-ms-per-token"] = partial(_over_length, texts, "ms_per_token", "ms a token")
        drawn["protocol-tokens-per-iteration"] = partial(
            _over_length, texts, "tokens_per_iteration", "tokens an iteration"
        )
        if any("speed_vs_autoregressive" in row for row in long):
            drawn["protocol-speedup"] = partial(_speedups, texts)
    ablations = _ablations(kept)
    if ablations:
        drawn["ablations"] = partial(_ablation_figure, ablations)
    return drawn


def _texts(rows: Sequence[Row]) -> Texts:
    """The protocol's rows by text; `asked_tokens` tells the texts of one prefix apart."""
    texts: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["section"] == "protocol":
            key = (row["sampling"], row["prefix"], row["asked_tokens"], row["prompt"]["digest"], row["checkpoint"])
            texts.setdefault(key, {})[row["contender"]] = row
    order = {name: place for place, name in enumerate(CONTENDERS)}
    return {key: sorted(own.values(), key=lambda row: order[row["contender"]]) for key, own in sorted(texts.items())}


def _title(row: Row) -> str:
    return f"{row['asked_tokens']:,} tokens after {row['prefix']:,}, {_sampling(row)}"


def _sampling(row: Row) -> str:
    return "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"


def _over_length(texts: Texts, field: str, axis: str, path: Path) -> None:
    """One panel a text: thin lines over the fine windows, thick steps over the coarse ones."""

    def draw(rows: list[Row], axes: Any) -> None:
        for row in rows:
            colour = _COLOUR[row["contender"]]
            ends, values = _steps(row["latency"], field)
            axes.plot(ends, values, color=colour, linewidth=0.8, alpha=0.45, drawstyle="steps-pre")
            ends, values = _steps(row["latency_coarse"], field)
            axes.plot(ends, values, color=colour, linewidth=1.8, drawstyle="steps-pre", label=row["contender"])
        axes.set_xlabel("generated tokens (thousands)", fontsize=8)
        axes.set_ylabel(axis, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=6, framealpha=0.7)

    panels = [Panel(_title(rows[0]), partial(draw, rows)) for rows in texts.values()]
    write_figure(path, panels, [row for rows in texts.values() for row in rows])


def _steps(windows: list[Row], field: str) -> tuple[list[float], list[float]]:
    """Where windows end, in thousands of tokens, and what they measured, for a line of steps that begins at 0."""
    ends, values, tokens = [0.0], [windows[0][field]], 0
    for window in windows:
        tokens += window["tokens"]
        ends.append(tokens / 1e3)
        values.append(window[field])
    return ends, values


def _speedups(texts: Texts, path: Path) -> None:
    """One panel a text: times plain decoding, with acceptance and the n-grams' share of it."""

    def label(row: Row) -> str:
        text = f"{row['speed_vs_autoregressive']['median']:.2f}x"
        if row.get("draft_depth"):
            text += f", alpha {row['acceptance_rate']:.2f}"
        if row.get("ngram_share"):
            text += f", n-grams {row['ngram_share']:.0%}"
        return text

    def draw(rows: list[Row], axes: Any) -> None:
        heights = [row["speed_vs_autoregressive"]["median"] for row in rows]
        names = [row["contender"] for row in rows]
        bars(axes, names, heights, [_COLOUR[name] for name in names], [label(row) for row in rows])
        axes.axvline(1, color="#555555", linewidth=0.8)
        axes.set_xlabel(f"times {_PLAIN}, over equal windows", fontsize=8)
        axes.margins(x=0.55)

    compared = {key: [row for row in rows if "speed_vs_autoregressive" in row] for key, rows in texts.items()}
    panels = [Panel(_title(rows[0]), partial(draw, rows)) for rows in compared.values() if rows]
    write_figure(path, panels, [row for rows in texts.values() for row in rows])


def _ablations(rows: Sequence[Row]) -> Texts:
    """The ablations' rows by what is varied and by sampling; without plain decoding's own."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        if row["section"] == "ablations" and row["contender"] != _PLAIN:
            key = (row["ablation"], row["sampling"], row["prefix"], row["asked_tokens"])
            own = (row["contender"], row["node_budget"], row["draft_cache"], row["heads_of"])
            groups.setdefault(key, {})[own] = row
    return {key: list(own.values()) for key, own in groups.items()}


def _ablation_figure(groups: Texts, path: Path) -> None:
    """One panel an ablation: bars are tokens an iteration, labels say what that is worth."""

    def label(row: Row) -> str:
        return (
            f"{row['tokens_per_iteration']['median']:.2f}, alpha {row['acceptance_rate']['median']:.2f}, "
            f"{row['speed_vs_autoregressive']['median']:.2f}x"
        )

    def draw(rows: list[Row], axes: Any) -> None:
        contenders = [row["contender"] for row in rows]
        names = [
            name.removeprefix("tokenswift ") + (f", {row['node_budget']} nodes" if contenders.count(name) > 1 else "")
            for name, row in zip(contenders, rows, strict=True)
        ]
        kinds = [row["schedule"] or row["mode"] for row in rows]
        palette = {"partial": "#0072B2", "fused": "#D55E00"}
        fills = [palette.get(kind, "#009E73") for kind in kinds]
        heights = [row["tokens_per_iteration"]["median"] for row in rows]
        bars(axes, names, heights, fills, [label(row) for row in rows])
        axes.margins(x=0.6)
        axes.set_xlabel(f"tokens an iteration; acceptance; times {_PLAIN}", fontsize=7)

    panels = []
    for (ablation, _, prefix, tokens), rows in groups.items():
        title = f"{ablation.replace('_', ' ')}: {tokens:,} tokens after {prefix:,}, {_sampling(rows[0])}"
        panels.append(Panel(title, partial(draw, rows)))
    write_figure(path, panels, [row for rows in groups.values() for row in rows])
