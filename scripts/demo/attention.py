"""Causal attention in blocks of queries: one block's scores in memory at a time, nothing above the diagonal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.models.decoder import Attention


def blocked_attention(block: int) -> Attention:
    """Attention over whole sequences; a block's scores are computed again in the backward pass."""

    @jax.checkpoint
    def attend_block(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        columns = jnp.arange(keys.shape[1])[None, :]
        rows = jnp.arange(keys.shape[1] - queries.shape[1], keys.shape[1])[:, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=(rows >= columns)[None, None])

    def attend(layer: int, queries: jax.Array, keys: jax.Array, values: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        length = queries.shape[1]
        if length <= block:
            return jax.nn.dot_product_attention(queries, keys, values, is_causal=True), carry
        bounds = [(start, min(start + block, length)) for start in range(0, length, block)]
        parts = [attend_block(queries[:, low:high], keys[:, :high], values[:, :high]) for low, high in bounds]
        return jnp.concatenate(parts, axis=1), carry

    return attend
