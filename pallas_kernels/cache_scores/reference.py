"""The selection pass in plain jnp: group-summed q.k over the live length with a running top-k."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dtypes import wide_dtype

BLOCK = 1024


def top_positions(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int,
    begins: jax.Array,
    ends: jax.Array,
    count: int,
) -> jax.Array:
    """Positions int32 [batch, kv_heads, count] of the best-scoring keys, best first; -1 where too few are eligible.

    The score of a key for a KV head is the sum over its query group of q.k, unnormalised (paper, Eq. 2).

    Args:
      query: [batch, query_heads, head_dim], rotated.
      keys: the stacked cache [layers, batch, kv_heads, capacity, head_dim]; slot i holds position i.
      layer: which layer to read.
      begins, ends: int32 [batch]; positions begins .. ends-1 are eligible. Others may hold anything, NaN included.
      count: how many to return.
    """
    batch, query_heads, head_dim = query.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    wide = wide_dtype(query.dtype)
    # Summing the group's queries first gives the same sum of products with one product a key.
    summed = query.reshape(batch, kv_heads, query_heads // kv_heads, head_dim).astype(wide).sum(axis=2)
    size = min(BLOCK, capacity)
    at_layer, zero = jnp.int32(layer), jnp.int32(0)  # the start's own type, also under jax_enable_x64

    def fold(index: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last block may start early to stay inside the cache; positions it repeats are masked.
        start = jnp.minimum(index * size, capacity - size)
        block = lax.dynamic_slice(keys, (at_layer, zero, zero, start, zero), (1, batch, kv_heads, size, head_dim))[0]
        positions = start + jnp.arange(size, dtype=jnp.int32)
        fresh = (positions >= index * size)[None, :]
        eligible = fresh & (positions[None, :] >= begins[:, None]) & (positions[None, :] < ends[:, None])
        scores = jnp.einsum("bhd,bhcd->bhc", summed, block.astype(wide))
        scores = jnp.where(eligible[:, None, :], scores, -jnp.inf)
        here = jnp.broadcast_to(positions, scores.shape)
        here = jnp.where(eligible[:, None, :], here, jnp.int32(-1))
        scores, chosen = lax.top_k(jnp.concatenate([best[0], scores], axis=-1), count)
        return scores, jnp.take_along_axis(jnp.concatenate([best[1], here], axis=-1), chosen, axis=-1)

    shape = (batch, kv_heads, count)
    best = (jnp.full(shape, -jnp.inf, wide), jnp.full(shape, -1, jnp.int32))
    first = jnp.maximum(begins.min(), 0) // size
    return lax.fori_loop(first, (ends.max() + size - 1) // size, fold, best)[1]
