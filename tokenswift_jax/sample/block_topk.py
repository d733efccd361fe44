"""Block top-k: a shortlist of every row's highest scores, gathered in one pass over the vocabulary.

A search over the shortlist replaces one over a large vocabulary: it reads some thousands of scores and reports which
rows it does not decide. Only those rows are searched over all their scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import implementation
from tokenswift_jax.parallel.vocabulary import best_blocks, is_shared, strided_blocks

_Found = TypeVar("_Found")
_Params = TypeVar("_Params")

WIDTH = 32  # scores per block
BLOCKS = 128  # blocks per shortlist


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["scores", "guaranteed_above", "highest"], meta_fields=[]
)
@dataclass(frozen=True)
class Shortlist:
    """The BLOCKS blocks with the highest peaks of every row; a block's peak is its highest score.

    Attributes:
      scores: [..., BLOCKS * WIDTH]; they contain every score of the row above `guaranteed_above`.
      guaranteed_above: [..., 1], the lowest peak of the chosen blocks: at least BLOCKS scores of the row are no lower.
      highest: [..., 1], the row's highest score.
    """

    scores: jax.Array
    guaranteed_above: jax.Array
    highest: jax.Array


def is_profitable(vocab: int) -> bool:
    """Whether a shortlist is less than an eighth of the vocabulary; a search over a smaller vocabulary costs little.

    On a GPU less than a half: a search over all scores launches a kernel a pass, about 100 in all (cost on an H200: 3.3
    us each), and one over a shortlist launches one.
    """
    return vocab > (2 if implementation() == "gpu" else 8) * BLOCKS * WIDTH


def shortlist(scores: jax.Array) -> Shortlist:
    """The shortlist of every row of scores [..., vocab].

    A block contains every (vocab / WIDTH)-th score, so that the peaks are maxima of whole slices, which every device
    reads at full speed. Where devices share the vocabulary, a block is of one device's part.
    """
    if is_shared(scores.shape[-1]):
        few, peaks = best_blocks(scores, BLOCKS, WIDTH)
    else:
        blocks = strided_blocks(scores, WIDTH)
        peaks, chosen = jax.lax.top_k(jnp.max(blocks, axis=-2), BLOCKS)
        few = jnp.take_along_axis(blocks, chosen[..., None, :], axis=-1).reshape(*scores.shape[:-1], BLOCKS * WIDTH)
    return Shortlist(few, peaks[..., -1:], peaks[..., :1])


def search_whole(
    search: Callable[[jax.Array, _Params], _Found],
    scores: jax.Array,
    params: _Params,
    found: _Found,
    settled: jax.Array,
    scores_at_once: int,
) -> _Found:
    """Replaces the entries of `found` that are not settled by the results of a search over all scores of their rows.

    The loop gathers and searches a few rows at a time, however many rows need it. They stay in a cache while the search
    reads them repeatedly, and a row's result does not depend on its neighbours.

    Args:
      search: a function from scores [rows, vocab] and parameters [rows, 1] to their entries of `found`, [rows, 1] each.
      scores: [texts, rows, vocab].
      params: arrays [texts, rows, 1], or [texts, 1, 1] for all rows of a text.
      found: arrays [texts, rows, 1].
      settled: bool [texts, rows, 1].
      scores_at_once: the most scores to search at a time, in whole rows, but at least one row.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    size = min(rows.shape[0], max(1, scores_at_once // rows.shape[1]))

    def of_rows(values: jax.Array, chosen: jax.Array) -> jax.Array:
        # The loop reads a text's parameter where it is. XLA would launch a kernel to copy it to every row.
        flat = values.reshape(-1, 1)
        return flat[chosen // (rows.shape[0] // flat.shape[0])]

    def some(state: tuple[jax.Array, _Found]) -> tuple[jax.Array, _Found]:
        done, found = state
        _, chosen = jax.lax.top_k(~done, size)
        new = search(rows[chosen], jax.tree.map(lambda values: of_rows(values, chosen), params))

        def kept_where_done(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[chosen].set(jnp.where(done[chosen], old[chosen], new[:, 0]), unique_indices=True)

        return done.at[chosen].set(True, unique_indices=True), jax.tree.map(kept_where_done, found, new)

    begin = settled.reshape(-1), jax.tree.map(lambda values: values.reshape(-1), found)
    _, ended = jax.lax.while_loop(lambda state: ~jnp.all(state[0]), some, begin)
    return jax.tree.map(lambda values, shaped: values.reshape(shaped.shape), ended, found)
