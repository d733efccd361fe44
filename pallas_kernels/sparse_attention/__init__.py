"""Attention of tree rows over the cache blocks that a table names, read in place, and over their own ancestors."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.implementation import choose
from pallas_kernels.sparse_attention import reference

__all__ = ["sparse_attention"]


def sparse_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    *,
    layer: int | jax.Array,
    blocks: jax.Array,
    block_size: int,
    lengths: jax.Array,
    tree_mask: jax.Array,
    positions: jax.Array,
    window: int | None,
    scale: float | None = None,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    return_lse: bool = False,
) -> Any:
    """Softmax attention of tree rows over named blocks of the cache and over each other, as
    [batch, rows, query_heads, head_dim].

    With `return_lse` it also returns the natural logarithm of each softmax's denominator, [batch, rows, query_heads],
    as `tree_attention` does.

    Args:
      queries: [batch, rows, query_heads, head_dim], rotated.
      keys, values: the stacked cache [layers, batch, kv_heads, capacity, head_dim]; slot i contains position i. Slots
        at or past a sequence's length, and in blocks that are not named, may contain anything, NaN included.
      own_keys, own_values: [batch, rows, kv_heads, head_dim] of the tree rows themselves.
      layer: the layer of the cache to read.
      blocks: int32 [batch, kv_heads, table], the blocks that the rows of each KV head see; -1 for none. No block
        appears twice.
      block_size: slots a block; block i contains the slots i * block_size .. (i + 1) * block_size - 1.
      lengths: int32 [batch], slots of the cache in use.
      tree_mask: bool [batch, rows, rows]; row i sees row j. Without `return_lse`, every row sees at least itself.
      positions: int32 [batch, rows], index in the text; read only under a sliding window.
      window: size of the sliding window: how many newest positions a row may see, its own included; None for all.
      scale: factor of the products of queries and keys; None for head_dim ** -0.5.
      key_scales, value_scales: [layers, batch, kv_heads, capacity], the factor of each key (value); None for 1.

    Raises:
      ValueError: the capacity is no multiple of block_size.
    """
    if keys.shape[3] % block_size:
        raise ValueError(f"a capacity of {keys.shape[3]} slots is no multiple of blocks of {block_size}")
    arrays = queries, keys, values, own_keys, own_values
    options: dict[str, Any] = {
        "layer": layer,
        "blocks": blocks,
        "block_size": block_size,
        "lengths": lengths,
        "tree_mask": tree_mask,
        "positions": positions,
        "window": window,
        "scale": queries.shape[-1] ** -0.5 if scale is None else scale,
        "key_scales": key_scales,
        "value_scales": value_scales,
        "return_lse": return_lse,
    }
    # Without these late imports, a process on CPU waits for the import of Pallas, which it never uses.
    match choose("sparse_attention"):
        case "tpu":
            from pallas_kernels.sparse_attention import tpu

            return tpu.sparse_attention(*arrays, **options)
        case "gpu":
            from pallas_kernels.sparse_attention import gpu

            return gpu.sparse_attention(*arrays, **options)
        case "reference":
            return reference.sparse_attention(*arrays, **options)
