"""The selection pass: it finds the cached keys, or blocks of keys, that score best under one query."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from pallas_kernels.cache_scores import reference
from pallas_kernels.cache_scores.running import running_top
from pallas_kernels.implementation import choose

__all__ = ["top_blocks", "top_positions"]

# Scores that an accelerator ranks at a time, together with the best so far.
CHUNK = 8192


def top_positions(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int | jax.Array,
    begins: jax.Array,
    ends: jax.Array,
    count: int,
    key_scales: jax.Array | None = None,
    with_scores: bool = False,
) -> Any:
    """Positions int32 [batch, kv_heads, count] of the best-scoring keys, best first; -1 where too few are eligible.

    The score of a key for a KV head is the sum over its query group of q.k, unnormalised (paper, Eq. 2).

    Args:
      query: [batch, query_heads, head_dim], rotated.
      keys: the stacked cache [layers, batch, kv_heads, capacity, head_dim]; slot i contains position i.
      layer: the layer to read.
      begins, ends: int32 [batch]; positions begins .. ends-1 are eligible. Others may contain anything, NaN included.
      count: how many positions to return.
      key_scales: [layers, batch, kv_heads, capacity], the factor of each key; None for 1.
      with_scores: whether to return (scores, positions), with scores in float32 or wider, -inf where there is none.
    """
    options: dict[str, Any] = {"layer": layer, "begins": begins, "ends": ends, "key_scales": key_scales}
    return top_blocks(query, keys, count=count, block_size=1, with_scores=with_scores, **options)


def top_blocks(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int | jax.Array,
    begins: jax.Array,
    ends: jax.Array,
    count: int,
    block_size: int,
    key_scales: jax.Array | None = None,
    with_scores: bool = False,
) -> Any:
    """Numbers int32 [batch, kv_heads, count] of the best-scoring blocks, best first; -1 where too few are eligible.

    Block i contains the slots i * block_size .. (i + 1) * block_size - 1. Its score is that of its best eligible key,
    and it is eligible if any of its keys is. The other arguments are those of `top_positions`.

    Args:
      block_size: slots a block; the capacity must be a multiple of it.

    Raises:
      ValueError: the capacity is no multiple of `block_size`.
    """
    if keys.shape[3] % block_size:
        raise ValueError(f"a capacity of {keys.shape[3]} slots is no multiple of blocks of {block_size}")
    options: dict[str, Any] = {"layer": layer, "begins": begins, "ends": ends, "key_scales": key_scales}
    # Without these late imports, a process on CPU waits for the import of Pallas, which it never uses.
    match choose("cache_scores"):
        case "tpu":
            from pallas_kernels.cache_scores.tpu import cache_scores
        case "gpu":
            from pallas_kernels.cache_scores.gpu import cache_scores
        case "reference":
            found = reference.top_blocks(query, keys, count=count, block_size=block_size, **options)
            return found if with_scores else found[1]
    scores = cache_scores(query, keys, **options)
    _, kv_heads, capacity = scores.shape
    chunk = min(CHUNK, capacity)
    found = running_top(
        lambda start: lax.dynamic_slice_in_dim(scores, start, chunk, axis=2),
        begins=begins,
        ends=ends,
        count=count,
        block_size=block_size,
        kv_heads=kv_heads,
        capacity=capacity,
        chunk=chunk,
        dtype=scores.dtype,
    )
    return found if with_scores else found[1]
