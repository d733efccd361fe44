"""Draws the figures of the benchmark's rows: PNG files, whose footer says which machine, versions and day.

    python scripts/plot.py benchmarks/FILE.jsonl ...            all that can be drawn, into docs/figures
    python scripts/plot.py benchmarks/FILE.jsonl --output DIR

Rows of several files are drawn together. The same rows give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking.rows import Row, read_rows
from benchmarking.settings import CONTENDERS

import tokenswift_jax as ts
from tokenswift_jax.cli.command import exit_status

ROOT = Path(__file__).resolve().parent.parent
PLAIN = "autoregressive"
# Colour-blind safe (Okabe and Ito 2008), and a grey; a contender has its own in every figure.
_COLOURS = ("#000000", "#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_COLOUR = dict(zip(CONTENDERS, _COLOURS, strict=True))
_LIBRARIES = ("jax", "transformers", "torch")
_CHARACTERS_AN_INCH = 21  # of the footer's size, with room to spare
Panels = list[tuple[str, Callable[[Any], None]]]  # title, and a function that draws into axes


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes every figure that the rows allow into a folder, which is made where it is missing.

    Raises:
      UserError: there is nothing to draw, or the folder cannot be written.
    """
    found = figures(rows)
    if not found:
        raise ts.UserError("nothing to draw: no rows of the section protocol (not of --quick)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ts.UserError(f"--output {folder}: {error.strerror}; name a folder that can be written") from error
    for name, (panels, own) in found.items():
        write_figure(folder / f"{name}.png", panels, own)
    return [folder / f"{name}.png" for name in found]


def figures(rows: Sequence[Row]) -> dict[str, tuple[Panels, list[Row]]]:
    """The pictures that can be drawn of these rows, by name: their panels, and the rows in them.

    Rows of `--quick` measure nothing and do not count; of two rows of one setting the later one counts.
    """
    kept = [row for row in rows if row.get("quick") is False]
    order = {name: place for place, name in enumerate(CONTENDERS)}
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in kept:
        if row.get("section") == "protocol":
            key = tuple(row[name] for name in ("sampling", "prefix", "asked_tokens", "checkpoint"))
            key += (row["prompt"]["digest"],)
            groups.setdefault(key, {})[row["contender"]] = row
    texts = [sorted(own.values(), key=lambda row: order[row["contender"]]) for _, own in sorted(groups.items())]
    compared = [[row for row in own if "speed_vs_autoregressive" in row] for own in texts]
    drawn: dict[str, tuple[Panels, list[Row]]] = {}
    for name, panels_of, draw_panel in (
        ("protocol-ms-per-token", texts, partial(_over_length, "ms_per_token", "ms a token")),
        ("protocol-tokens-per-iteration", texts, partial(_over_length, "tokens_per_iteration", "tokens an iteration")),
        ("protocol-speedup", compared, _speedups),
    ):
        panels: Panels = [(_title(own[0]), partial(draw_panel, own)) for own in panels_of if own]
        if panels:
            drawn[name] = panels, [row for own in texts for row in own]
    return drawn


def _title(row: Row) -> str:
    sampling = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
    return f"{row['asked_tokens']:,} tokens after {row['prefix']:,}, {sampling}"


def _over_length(field: str, axis: str, rows: list[Row], axes: Any) -> None:
    """Thin lines over the fine windows, thick steps over the coarse ones."""
    for row in rows:
        for windows, style in (
            ("latency", {"linewidth": 0.8, "alpha": 0.45}),
            ("latency_coarse", {"linewidth": 1.8, "label": row["contender"]}),
        ):
            ends, values, tokens = [0.0], [row[windows][0][field]], 0  # a line of steps begins at 0
            for window in row[windows]:
                tokens += window["tokens"]
                ends.append(tokens / 1e3)
                values.append(window[field])
            axes.plot(ends, values, color=_COLOUR[row["contender"]], drawstyle="steps-pre", **style)
    axes.set_xlabel("generated tokens (thousands)", fontsize=8)
    axes.set_ylabel(axis, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=6, framealpha=0.7)


def _speedups(rows: list[Row], axes: Any) -> None:
    """Times plain decoding, with acceptance and the n-grams' share of it."""
    labels = []
    for row in rows:
        labels.append(f"{row['speed_vs_autoregressive']['median']:.2f}x")
        labels[-1] += f", alpha {row['acceptance_rate']:.2f}" if row.get("draft_depth") else ""
        labels[-1] += f", n-grams {row['ngram_share']:.0%}" if row.get("ngram_share") else ""
    heights = [row["speed_vs_autoregressive"]["median"] for row in rows]
    names = [row["contender"] for row in rows]
    _bars(axes, names, heights, [_COLOUR[name] for name in names], labels)
    axes.axvline(1, color="#555555", linewidth=0.8)
    axes.set_xlabel(f"times {PLAIN}, over equal windows", fontsize=8)
    axes.margins(x=0.55)


def _bars(axes: Any, names: list[str], heights: list[float], fills: list[str], labels: list[str]) -> None:
    """Horizontal bars from the top, each with a label at its end."""
    places = range(len(names))
    axes.barh(places, heights, color=fills, height=0.7)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    for place, height, label in zip(places, heights, labels, strict=True):
        axes.annotate(label, (height, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.margins(x=0.22)


def write_figure(path: Path, panels: Panels, rows: Sequence[Row], columns: int = 3) -> None:
    """Writes the panels as a PNG with a footer on `rows`; the same bytes for the same rows and matplotlib.

    Raises:
      UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ts.UserError("figures need matplotlib: pip install 'tokenswift_jax[train]'") from None
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns + 0.6, 3.4 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, draw_panel) in enumerate(panels, 1):
        axes: Any = figure.add_subplot(lines, columns, place)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        draw_panel(axes)
    width = int(_CHARACTERS_AN_INCH * figure.get_figwidth())
    wrapped = [part for line in footer(rows) for part in textwrap.wrap(line, width)]
    figure.supxlabel("\n".join(wrapped), fontsize=6.5, color="#555555", x=0.01, ha="left")
    try:
        # Without this metadata, matplotlib writes its version, and the file does not depend on the rows alone.
        figure.savefig(str(path), dpi=100, format="png", metadata={"Software": None})
    except OSError as error:
        raise ts.UserError(f"{path}: {error.strerror}; name a folder that can be written") from error


def footer(rows: Sequence[Row]) -> list[str]:
    """A line for every machine, dtype and set of versions among the rows, with the days and the load they ran under."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        versions = row["versions"]
        libraries = ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
        place = f"{row['model']} in {row['dtype']}; {row['cpu']}, {row['cores']} cores, {row['device']}; {libraries}"
        places.setdefault(place, []).append(row)
    lines = []
    for place, own in places.items():
        days = sorted({row["date"][:10] for row in own})
        loads = [row["load_average"][0] for row in own if row["load_average"]]
        load = f"; load {min(loads):g} to {max(loads):g}" if loads else ""
        lines.append(f"{place}; {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}{load}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Draws and prints the paths of the figures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines of scripts/benchmark.py")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures", help="folder (default: docs/figures)")

    def run() -> int:
        arguments = parser.parse_args(argv)
        print(*draw([row for file in arguments.files for row in read_rows(file)], arguments.output), sep="\n")
        return 0

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
