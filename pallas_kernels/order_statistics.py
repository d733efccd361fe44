"""Exact order statistics of every row of scores without sorting: a search over the bits of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class RadixSearch:
    """Settings of a threshold search; static. All settings give the same answer, bit for bit.

    Attributes:
      bits: bits of the answer that one pass over the scores settles, by comparing them with 2**bits - 1 numbers.
      keep_weights: compute the scores' weights once and keep them, instead of once a pass.
      unroll: write the passes one after another into the program. A GPU launches each pass of a loop separately: 10 a
        search.
      scores_at_once: the most scores to search at a time, in whole rows, but at least one row: they stay in a cache
        from pass to pass.
    """

    bits: int
    keep_weights: bool
    unroll: bool
    scores_at_once: int


# Comparisons cost a CPU most: it makes one a pass, 32 in all for float32. Reading costs an accelerator most: it makes
# seven comparisons a pass, in 11 passes. With fifteen, XLA splits a pass into two kernels, and 8 passes read 16 times.
# 8 MB of float32 are a fifth of an A100's second-level cache; a CPU searches a few rows at a time faster than one by
# one.
ONE_BIT = RadixSearch(bits=1, keep_weights=True, unroll=False, scores_at_once=2**19)
FEW_PASSES = RadixSearch(bits=3, keep_weights=False, unroll=True, scores_at_once=2**21)


def kth_largest(scores: jax.Array, k: jax.Array, search: RadixSearch = ONE_BIT) -> jax.Array:
    """The exact k-th largest score of every row: [..., vocab] -> [..., 1]; the smallest score for any larger k.

    k is int32 [] or [..., 1], one per row.
    """

    def enough(edges: jax.Array) -> jax.Array:
        above = scores[..., None, :] >= edges[..., None]
        return jnp.sum(above, axis=-1, dtype=jnp.int32) >= k

    return _bisect_bits(enough, scores, search)


def nucleus_edge(
    scores: jax.Array,
    highest: jax.Array,
    lowest: jax.Array,
    top_p: jax.Array,
    search: RadixSearch = ONE_BIT,
    total: jax.Array | None = None,
) -> jax.Array:
    """The largest score t such that tokens of score >= t have at least `top_p` of the weight.

    A token is therefore kept iff the tokens above it have less than `top_p`. Without ties the kept tokens are the
    fewest likeliest tokens whose probabilities reach it, as in transformers; tied tokens are kept or dropped together.

    Args:
      scores: [..., vocab]; the weight of one is exp(score - highest), or 0 below `lowest`.
      highest: [..., 1], the row's highest score.
      lowest: [..., 1].
      top_p: [] or [..., 1], a probability.
      search: how to search, static.
      total: [..., 1], the total weight; None for that of `scores`.

    Returns:
      [..., 1]; the lowest score where `scores` have less than `top_p` of `total`.
    """

    def weights() -> jax.Array:
        return jnp.where(scores < lowest, 0, jnp.exp(scores - highest))

    kept = weights()
    target = top_p * (jnp.sum(kept, axis=-1, keepdims=True) if total is None else total)

    def enough(edges: jax.Array) -> jax.Array:
        weighed = kept if search.keep_weights else weights()
        above = scores[..., None, :] >= edges[..., None]
        mass = jnp.sum(jnp.where(above, weighed[..., None, :], 0), axis=-1)
        return (mass >= target) & (mass > 0)  # top_p may underflow to 0

    return _bisect_bits(enough, scores, search)


def _bisect_bits(holds: Callable[[jax.Array], jax.Array], scores: jax.Array, search: RadixSearch) -> jax.Array:
    """The largest score of every row for which `holds` is true, provided it is true for every lower number; else -inf.

    The search settles `search.bits` bits a pass of an unsigned integer; these integers order as floats do (sign flipped
    if positive, all bits if negative).

    Args:
      holds: a function from numbers [..., count] in the scores' dtype to bool [..., count], whether each is low enough.
      scores: [..., vocab].
      search: how to search, static.
    """
    bits, step = scores.dtype.itemsize * 8, search.bits
    word = jnp.dtype(f"uint{bits}")
    sign = jnp.asarray(1 << (bits - 1), word)
    # By NumPy: Pallas' Triton backend bitcasts no constants.
    lowest = jnp.asarray(~np.asarray(-np.inf, scores.dtype).view(word))

    def number(image: jax.Array) -> jax.Array:
        image = jnp.maximum(image, lowest)  # images below that of -inf are NaNs
        return jax.lax.bitcast_convert_type(jnp.where(image >= sign, image ^ sign, ~image), scores.dtype)

    def settle(image: jax.Array, shift: jax.Array, count: int) -> jax.Array:
        # `holds` is true for every number below one for which it is true, so the digit is the number of digits for
        # which it is true. Without one reduction over all digits, a GPU runs a kernel for each.
        shape = (*scores.shape[:-1], 2**count - 1)
        digits = jax.lax.broadcasted_iota(word, shape, scores.ndim - 1) + jnp.ones((), word)
        digit = jnp.sum(holds(number(image | (digits << shift))).astype(word), axis=-1, keepdims=True, dtype=word)
        return image | (digit << shift)

    def one_pass(i: jax.Array, image: jax.Array) -> jax.Array:
        return settle(image, (bits - step * (i + 1)).astype(word), step)

    passes, rest = divmod(bits, step)
    image = jnp.zeros((*scores.shape[:-1], 1), word)
    if search.unroll:
        for i in range(passes):
            image = one_pass(jnp.int32(i), image)
    else:
        image = jax.lax.fori_loop(0, passes, one_pass, image)
    if rest:
        image = settle(image, jnp.zeros((), word), rest)
    # Round up to the score itself: processors that flush denormals read any of them as 0.
    return jnp.min(jnp.where(scores < number(image), jnp.inf, scores), axis=-1, keepdims=True)
