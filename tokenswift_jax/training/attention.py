"""Causal attention of packed rows, in blocks of queries: memory contains the scores of one block at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.models.attention import Attention
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation


def packed_attention(positions: jax.Array, segments: jax.Array, block: int) -> Attention:
    """Attention within each packed document; the backward pass computes the scores of each block again.

    Each layer returns its rotated queries and keys, and its values.

    Args:
      positions, segments: int32 [batch, length]; a token sees itself and the tokens before it in its own segment.
      block: queries at a time; a block does not read keys after its last query.
    """

    def attend(
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        (queries, keys, values), window = projected.rotated(rotation), spec.window

        @jax.checkpoint
        def attend_block(queries: jax.Array, keys: jax.Array, values: jax.Array, low: jax.Array) -> jax.Array:
            end, count = keys.shape[1], queries.shape[1]
            rows = low + jnp.arange(count, dtype=jnp.int32)
            own = jax.lax.dynamic_slice_in_dim(segments, low, count, axis=1)
            here = jax.lax.dynamic_slice_in_dim(positions, low, count, axis=1)
            seen = (rows[:, None] >= jnp.arange(end, dtype=jnp.int32)[None, :])[None]
            seen = seen & (own[:, :, None] == segments[:, None, :end])
            if window is not None:
                seen = seen & (here[:, :, None] - positions[:, None, :end] < window)
            return jax.nn.dot_product_attention(queries, keys, values, mask=seen[:, None], scale=spec.scale)

        length = queries.shape[1]
        parts = []
        for low in range(0, length, block):
            high = min(low + block, length)
            parts.append(attend_block(queries[:, low:high], keys[:, :high], values[:, :high], jnp.int32(low)))
        mixed = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        return mixed, (queries, keys, values), carry

    return attend
