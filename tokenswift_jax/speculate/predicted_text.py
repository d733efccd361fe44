"""Predicted texts: 4-grams of a text that a row may resemble enter its n-gram table before those of the row.

They have negative positions, so that the row's own 4-grams are more recent. Nothing else of a row depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from pallas_kernels.ngram_table.sets import LENGTH
from tokenswift_jax.parallel.rows import over_rows
from tokenswift_jax.parallel.rules import placed
from tokenswift_jax.speculate import ngram_fill
from tokenswift_jax.speculate.drafter import StatePart
from tokenswift_jax.speculate.ngram import NgramTable

_WIDTH = 1024  # tokens of a piece: one program for predictions of every length
_HEAD = 2  # columns of a piece before its tokens


def tables(parts: Sequence[StatePart]) -> list[int]:
    """The places of n-gram tables among the parts of a drafter's state."""
    return [place for place, part in enumerate(parts) if part.takes_predictions]


def pieces(predictions: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """The predictions of all rows in pieces that `enter` takes in order; none if every prediction is empty.

    Returns:
        int32 `[batch, 2 + width]`: the number of tokens, the position of the first one, and the tokens. A piece repeats
        the last three tokens of the piece before, so that it has every 4-gram that ends in it.
    """
    step = _WIDTH - (LENGTH - 1)
    for start in range(0, max(map(len, predictions), default=0), step):
        piece = np.zeros((len(predictions), _HEAD + _WIDTH), np.int32)
        for row, prediction in enumerate(predictions):
            tokens = prediction[start : start + _WIDTH]
            piece[row, :_HEAD] = len(tokens), start - len(prediction)
            piece[row, _HEAD : _HEAD + len(tokens)] = tokens
        yield piece


@partial(jax.jit, donate_argnums=0)
def enter(table: NgramTable, piece: jax.Array) -> NgramTable:
    """The table with the 4-grams of a piece of `pieces`; the table must have no 4-grams of the row itself."""
    return placed(over_rows(_enter, (table, piece), 0, piece.shape[0]))


def _enter(table: NgramTable, piece: jax.Array) -> NgramTable:
    count, first, tokens = piece[:, 0], piece[:, 1], piece[:, _HEAD:]
    filled = ngram_fill.fill(table, tokens, count, first)
    return NgramTable(filled.entries, table.inserted)
