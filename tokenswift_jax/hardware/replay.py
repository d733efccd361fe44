"""The time of a long text, computed from measured steps and stated acceptance rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_DEPTHS = {"plain": 0, "verify-16": 3, "verify-64": 3, "partial-16": 4}  # tokens that an iteration drafts in a row


def replayed(
    timed: Sequence[dict[str, Any]], model: str, tokens: int, acceptances: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """The time of a text of so many tokens, from rows of `steps`."""
    measured = {(row["step"], row["length"]): row["milliseconds"] for row in timed if row["model"] == model}
    for name, depth in _DEPTHS.items():
        points = sorted((length, cost) for (step, length), cost in measured.items() if step == name)
        if not points:
            continue
        for acceptance in acceptances if depth else (0.0,):
            a_pass = 1 + depth * acceptance
            yield {
                "model": model,
                "step": name,
                "kind": "replayed: computed from measured step times and the stated acceptance",
                "acceptance_rate": acceptance,
                "tokens_a_pass": a_pass,
                "tokens": tokens,
                "seconds": integral(points, tokens) / a_pass / 1e3,
            }


def integral(points: list[tuple[int, float]], tokens: int) -> float:
    """Milliseconds of a pass summed over lengths 0 .. tokens-1, linear between the points and level beyond them."""
    lengths, costs = zip(*points, strict=True)
    return float(np.interp(np.arange(tokens), lengths, costs).sum())
