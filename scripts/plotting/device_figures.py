"""Figures of a device check: how near steps and kernels come to the bandwidth that was measured beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plotting.canvas import Panel, Row, colours, write_figure

Lines = dict[str, list[tuple[int, float]]]


def figures(rows: Sequence[Row]) -> dict[str, Callable[[Path], None]]:
    """What can be drawn of these rows: names of pictures, and how to write each."""
    drawn: dict[str, Callable[[Path], None]] = {}
    # A chunk of a prompt is bound by arithmetic: its share of the bandwidth says nothing.
    steps = [row for row in rows if row.get("section") == "steps" and row.get("step") not in (None, "prefill")]
    if steps:
        drawn["device-steps"] = partial(_figure, steps, "step", "milliseconds", "ms a pass")
    kernels = [row for row in rows if row.get("section") == "kernels" and "of_copy_bandwidth" in row]
    if kernels:
        named = [row | {"case": f"{row['kernel']}, {row['rows']} rows"} for row in kernels]
        drawn["device-kernels"] = partial(_figure, named, "case", "microseconds", "µs a call")
    return drawn


def _figure(rows: Sequence[Row], name: str, field: str, axis: str, path: Path) -> None:
    panels = [
        Panel(f"{axis} by length", partial(_lines, _by_name(rows, name, field), axis)),
        Panel("share of the copy bandwidth", partial(_lines, _by_name(rows, name, "of_copy_bandwidth"), "share")),
    ]
    write_figure(path, panels, rows, columns=2)


def _by_name(rows: Sequence[Row], name: str, field: str) -> Lines:
    found: Lines = {}
    for row in rows:
        found.setdefault(row[name], []).append((row["length"], row[field]))
    return {key: sorted(points) for key, points in found.items()}


def _lines(lines: Lines, label: str, axes: Any) -> None:
    chosen = colours(list(lines))
    for name, points in lines.items():
        lengths, values = zip(*points, strict=True)
        axes.plot(lengths, values, marker="o", markersize=3, linewidth=1.2, color=chosen[name], label=name)
    axes.set_xlabel("committed tokens", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
