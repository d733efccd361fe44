"""Curves of a run: losses, learning rate, accuracies and expected tokens over steps, drawn from the metrics file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.metrics import read_metrics

# Colour-blind safe colours (Okabe and Ito 2008); a head has the same colour in every panel.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SMOOTHED = 200  # most points of a training curve after averaging


@dataclass(frozen=True)
class _Panel:
    """One diagram and the metrics that it shows.

    Attributes:
      title: the title of the diagram.
      axis: the label of the vertical axis.
      series: entries (pattern of metric names, label, line style); the pattern's first group, if it has one, fills the
        label.
    """

    title: str
    axis: str
    series: tuple[tuple[str, str, str], ...]


_PANELS = (
    _Panel(
        "loss",
        "nats a token",
        (
            (r"train/head_(\d+)/loss", "head {}", "-"),
            (r"eval/head_(\d+)/loss", "head {}, held out", "o--"),
            (r"train/base_loss", "backbone", "-"),
            (r"eval/base_loss", "backbone, held out", "o--"),
        ),
    ),
    _Panel("learning rate", "", ((r"train/(\w*learning_rate)", "{}", "-"),)),
    _Panel(
        "held-out accuracy against the model's own choice",
        "share of positions",
        ((r"eval/head_(\d+)/model_top_1", "head {}", "o-"), (r"eval/head_(\d+)/model_top_3", "head {}, top 3", "o:")),
    ),
    _Panel(
        "expected tokens per iteration",
        "tokens",
        (
            (r"eval/expected/(\w+)_t0", "{}, temperature 0", "o-"),
            (r"eval/expected/(\w+)_t1", "{}, temperature 1", "o:"),
        ),
    ),
)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Writes a PNG of the curves in a metrics file (`metrics.MetricsWriter`), without the diagrams that have no data.

    Raises:
      UserError: matplotlib is missing, the file cannot be read or has nothing to draw, or the picture cannot be
        written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves need matplotlib: pip install 'tokenswift_jax[train]'") from None
    curves = series(read_metrics(metrics))
    drawn = [(panel, lines) for panel in _PANELS if (lines := _lines(panel, curves))]
    if not drawn:
        raise UserError(f"{metrics} has no losses, accuracies or expected tokens to draw")
    columns = min(len(drawn), 2)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (panel, lines) in enumerate(drawn, 1):
        axes: Any = figure.add_subplot(rows, columns, place)
        _draw(axes, panel, lines)
    try:
        figure.savefig(str(picture), dpi=110, format="png")
    except OSError as error:
        raise UserError(f"curves {picture}: {error.strerror}; name a place that can be written") from error


def series(rows: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each metric, both [points]; NaN for null, which stands for a number that is not finite."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                points.setdefault(name, []).append((row["step"], math.nan if value is None else float(value)))
    return {
        name: (np.asarray([step for step, _ in pairs]), np.asarray([value for _, value in pairs]))
        for name, pairs in points.items()
    }


def thinned(steps: np.ndarray, values: np.ndarray, most: int = _SMOOTHED) -> tuple[np.ndarray, np.ndarray]:
    """The curve with at most `most` points, each the mean of neighbouring points."""
    if len(steps) <= most:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), most)
    return np.asarray([steps[part].mean() for part in parts]), np.asarray([values[part].mean() for part in parts])


def _lines(
    panel: _Panel, curves: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[tuple[str, str, str, tuple[np.ndarray, np.ndarray]]]:
    """Lines (label, key that decides the colour, style, points), in the order of the panel's patterns."""
    lines = []
    for pattern, label, style in panel.series:
        for name in sorted(curves):
            if found := re.fullmatch(pattern, name):
                key = found.group(1) if found.groups() else "backbone"
                lines.append((label.format(key.replace("_", " ")), key, style, curves[name]))
    return lines


def _draw(axes: Any, panel: _Panel, lines: list[tuple[str, str, str, tuple[np.ndarray, np.ndarray]]]) -> None:
    keys = sorted({key for _, key, _, _ in lines})
    for label, key, style, (steps, values) in lines:
        marked = "o" in style
        points = (steps, values) if marked else thinned(steps, values)
        colour = _COLOURS[keys.index(key) % len(_COLOURS)]
        axes.plot(*points, style, label=label, color=colour, markersize=3.5, linewidth=1.4)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.axis)
    axes.grid(alpha=0.25)
    if len(lines) > 1:
        axes.legend(fontsize=8, framealpha=0.7)
