"""The few tokens of every row that hold its highest scores, found in one reading: order statistics of a large
vocabulary become those of some thousands of scores, and say so where they are not."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tokenswift_jax.decoding.thresholds import Search, kth_largest, nucleus_edge
from tokenswift_jax.parallel.residual import whole

WIDTH = 32  # scores of a block
BLOCKS = 128  # blocks of a shortlist


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scores", "sure", "highest"], meta_fields=[])
@dataclass(frozen=True)
class Shortlist:
    """The blocks of every row whose highest scores are the highest.

    Attributes:
      scores: [..., BLOCKS * WIDTH]; every score of the row above `sure` is among them.
      sure: [..., 1], the least of the chosen blocks' peaks: at least BLOCKS scores of the row are no lower.
      highest: [..., 1], the row's highest score.
    """

    scores: jax.Array
    sure: jax.Array
    highest: jax.Array


def worthwhile(vocab: int) -> bool:
    """Whether a shortlist of a vocabulary is less than an eighth of it; else searching all of it costs little."""
    return vocab > 8 * BLOCKS * WIDTH


def shortlist(scores: jax.Array) -> Shortlist:
    """The shortlist of every row of scores [..., vocab].

    A block is every (vocab / WIDTH)-th score, so that peaks are maxima of whole slices, which every device reads at
    full speed.
    """
    rows, vocab = scores.shape[:-1], scores.shape[-1]
    missing = -vocab % WIDTH
    if missing:
        scores = jnp.pad(scores, [(0, 0)] * len(rows) + [(0, missing)], constant_values=-jnp.inf)
    blocks = scores.reshape(*rows, WIDTH, -1)
    peaks, chosen = jax.lax.top_k(whole(jnp.max(blocks, axis=-2)), BLOCKS)
    few = jnp.take_along_axis(blocks, chosen[..., None, :], axis=-1).reshape(*rows, BLOCKS * WIDTH)
    return Shortlist(whole(few), peaks[..., -1:], peaks[..., :1])


def kth_of(few: Shortlist, k: jax.Array, search: Search) -> tuple[jax.Array, jax.Array]:
    """The k-th largest score of every row, [..., 1], and whether it is: it always is for k <= BLOCKS.

    All scores above `sure` are at hand, and BLOCKS of the row are no lower: what is found at or above `sure` is exact.
    """
    found = kth_largest(few.scores, k, search)
    return found, found >= few.sure


def nucleus_of(
    few: Shortlist, lowest: jax.Array, total: jax.Array, top_p: jax.Array, search: Search
) -> tuple[jax.Array, jax.Array]:
    """`thresholds.nucleus_edge` of every row, [..., 1], and whether it is: where it lies above `sure`.

    Args:
      few: the shortlist.
      lowest: [..., 1], scores below it weigh nothing.
      total: [..., 1], the weight of the whole row.
      top_p: [], a probability.
      search: how to search, static.
    """
    edge = nucleus_edge(few.scores, few.highest, lowest, top_p, search, total)
    return edge, edge > few.sure
