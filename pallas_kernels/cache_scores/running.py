"""The running top-k of the selection pass: it folds one chunk of scores after another into the best so far."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def running_top(
    chunk_scores: Callable[[jax.Array], jax.Array],
    *,
    begins: jax.Array,
    ends: jax.Array,
    count: int,
    kv_heads: int,
    capacity: int,
    chunk: int,
    block_size: int,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Scores [batch, kv_heads, count] of the best-scoring blocks of slots, best first, -inf where too few are eligible,
    and their numbers int32 of the same shape, -1 there. With blocks of one slot the numbers are positions.

    A block has the score of its best eligible slot. The loop calls `chunk_scores` only for chunks between the first
    and the last eligible slot of the batch.

    Args:
      chunk_scores: start int32 [] -> scores [batch, kv_heads, chunk] of the slots start ..; the scores of slots that
        are not eligible may be anything, NaN included.
      begins, ends: int32 [batch]; slots begins .. ends-1 are eligible.
      count: how many blocks to return.
      kv_heads, capacity: sizes of the cache.
      chunk: slots scored at a time; at most the capacity and, like it, a multiple of block_size.
      block_size: slots a block.
      dtype: dtype of the scores.
    """
    batch, blocks = begins.shape[0], chunk // block_size

    def fold(index: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last chunk may start early to stay inside the cache; the mask excludes the slots that it repeats.
        start = jnp.minimum(index * chunk, capacity - chunk)
        slots = start + jnp.arange(chunk, dtype=jnp.int32)
        fresh = (slots >= index * chunk)[None, :]
        eligible = fresh & (slots[None, :] >= begins[:, None]) & (slots[None, :] < ends[:, None])
        scores = jnp.where(eligible[:, None, :], chunk_scores(start), -jnp.inf)
        scores = scores.reshape(batch, kv_heads, blocks, block_size).max(axis=-1)
        eligible = eligible.reshape(batch, 1, blocks, block_size).any(axis=-1)
        numbers = start // block_size + jnp.arange(blocks, dtype=jnp.int32)
        numbers = jnp.where(eligible, numbers[None, None, :], jnp.int32(-1))
        numbers = jnp.broadcast_to(numbers, scores.shape)
        scores, chosen = lax.top_k(jnp.concatenate([best[0], scores], axis=-1), count)
        return scores, jnp.take_along_axis(jnp.concatenate([best[1], numbers], axis=-1), chosen, axis=-1)

    shape = (batch, kv_heads, count)
    best = (jnp.full(shape, -jnp.inf, dtype), jnp.full(shape, -1, jnp.int32))
    first = jnp.maximum(begins.min(), 0) // chunk
    return lax.fori_loop(first, (ends.max() + chunk - 1) // chunk, fold, best)
