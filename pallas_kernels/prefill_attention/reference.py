"""Prefill attention as tree attention under a causal mask: the definition, and the path without a library kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.tree_attention import tree_attention


def causal_mask(batch: int, rows: int) -> jax.Array:
    """The mask under which every row sees itself and the rows before it, bool [batch, rows, rows]."""
    return jnp.broadcast_to(jnp.tril(jnp.ones((rows, rows), bool)), (batch, rows, rows))


def prefill_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> jax.Array:
    """`tree_attention` of rows that follow each other in the text, as [batch, rows, query_heads, head_dim].

    It takes the arguments of `tree_attention` except the mask. The cache also contains the K/V of the rows themselves,
    in text order, in the slots from `lengths` on; slots past those may contain anything finite.
    """
    batch, rows = queries.shape[:2]
    return tree_attention(queries, keys, values, tree_mask=causal_mask(batch, rows), **options)
