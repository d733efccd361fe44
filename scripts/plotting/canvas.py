"""What all figures share: a grid of panels, colours, the footer that says where the numbers come from, the PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError

Row = dict[str, Any]
# Colour-blind safe (Okabe and Ito 2008), and a grey; a contender has its own in every figure.
_COLOURS = ("#000000", "#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LIBRARIES = ("jax", "transformers", "torch")
_DPI = 100
_CHARACTERS_AN_INCH = 21  # of the footer's size, with room to spare


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
      title: above it.
      draw: draws into the axes it is given.
    """

    title: str
    draw: Callable[[Any], None]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, by its place in `names`."""
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def write_figure(path: Path, panels: Sequence[Panel], rows: Sequence[Row], columns: int = 3) -> None:
    """Writes the panels as a PNG with a footer on `rows`; the same bytes for the same rows and matplotlib.

    Raises:
      UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'tokenswift_jax[train]'") from None
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns + 0.6, 3.4 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, 1):
        axes: Any = figure.add_subplot(lines, columns, place)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        panel.draw(axes)
    width = int(_CHARACTERS_AN_INCH * figure.get_figwidth())
    said = [part for line in footer(rows) for part in textwrap.wrap(line, width)]
    figure.supxlabel("\n".join(said), fontsize=6.5, color="#555555", x=0.01, ha="left")
    try:
        # Without the name of the program that wrote it, the file depends on the rows alone.
        figure.savefig(str(path), dpi=_DPI, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a folder that can be written") from error


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


def bars(axes: Any, names: list[str], heights: list[float], fills: list[str], labels: list[str]) -> None:
    """Horizontal bars from the top, each with a label at its end."""
    places = range(len(names))
    axes.barh(places, heights, color=fills, height=0.7)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    for place, height, label in zip(places, heights, labels, strict=True):
        axes.annotate(label, (height, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.margins(x=0.22)
