"""The selection pass in plain jnp: q.k summed over the query group, over the live length, with a running top-k."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.cache_scores.running import running_top
from pallas_kernels.dtypes import wide_dtype

CHUNK = 1024


def top_blocks(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int | jax.Array,
    begins: jax.Array,
    ends: jax.Array,
    count: int,
    block_size: int,
    key_scales: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`pallas_kernels.cache_scores.top_blocks` with the scores; it scores the keys chunk by chunk."""
    batch, _, head_dim = query.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    summed = summed_group(query, kv_heads)
    chunk = min(CHUNK, capacity)
    at_layer, zero = jnp.asarray(layer, jnp.int32), jnp.int32(0)  # the dtype of `start`, also under jax_enable_x64

    def chunk_scores(start: jax.Array) -> jax.Array:
        at = (at_layer, zero, zero, start, zero)
        block = lax.dynamic_slice(keys, at, (1, batch, kv_heads, chunk, head_dim))[0]
        scores = jnp.einsum("bhd,bhcd->bhc", summed, block.astype(summed.dtype))
        if key_scales is not None:
            scales = lax.dynamic_slice(key_scales, at[:-1], (1, batch, kv_heads, chunk))[0]
            scores = scores * scales.astype(scores.dtype)
        return scores

    return running_top(
        chunk_scores,
        begins=begins,
        ends=ends,
        count=count,
        kv_heads=kv_heads,
        capacity=capacity,
        chunk=chunk,
        block_size=block_size,
        dtype=summed.dtype,
    )


def summed_group(query: jax.Array, kv_heads: int) -> jax.Array:
    """The sum of each query group, [batch, kv_heads, head_dim] in float32 or wider, of queries
    [batch, query_heads, head_dim]. One product of a key with it is the sum of the products with the group's queries."""
    batch, query_heads, head_dim = query.shape
    grouped = query.reshape(batch, kv_heads, query_heads // kv_heads, head_dim)
    return grouped.astype(wide_dtype(query.dtype)).sum(axis=2)
