"""One forward of the decoder over rows that extend a cache: write each layer's K/V first, then attend.

The order matters: writing before reading lets every backend update the donated cache in place, also inside a
while loop; reading first makes XLA keep the old cache and copy it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.prefill_attention import prefill_attention
from pallas_kernels.sparse_attention import sparse_attention
from pallas_kernels.tree_attention import tree_attention
from tokenswift_jax.kv.dense import FullCache, write_rows
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.heads import over_heads


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What one forward computed for its rows.

    Attributes:
      hidden: the last layer's output [batch, rows, hidden_size], before the final norm.
      keys, values: of the rows themselves [layers, batch, kv_heads, rows, head_dim], keys rotated.
      query: rotated queries of row 0, [layers, batch, query_heads, head_dim].
    """

    hidden: jax.Array
    keys: jax.Array
    values: jax.Array
    query: jax.Array


def forward_rows(
    model: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    cache: FullCache,
    lengths: jax.Array,
    tree_mask: jax.Array | None,
    *,
    key_positions: jax.Array | None = None,
    blocks: jax.Array | None = None,
    block_size: int | None = None,
) -> tuple[Rows, FullCache]:
    """Runs rows over the first `lengths` slots of a cache and over each other.

    Args:
      model: the decoder, merged from its parameters.
      tokens: int32 [batch, rows].
      positions: int32 [batch, rows], each row's index in the text.
      cache: the full cache, or a draft cache in the same layout; its slots lengths.. are overwritten.
      lengths: int32 [batch], slots in use; lengths + rows must not exceed the capacity.
      tree_mask: bool [batch, rows, rows]; row i sees row j. Every row sees itself. None: rows follow each other in
        the text, and so do the cache's slots; goes without key_positions and blocks.
      key_positions: int32 [layers, batch, kv_heads, capacity] for a cache whose slots are not in text order.
      blocks: int32 [layers, batch, kv_heads, table], the only blocks of `block_size` slots that the rows see, -1 for
        none; None: they see every slot in use. Goes without key_positions.
    """
    config = model.config
    collected: list[tuple[jax.Array, jax.Array, jax.Array]] = []

    def attend(layer: int, queries: jax.Array, keys: jax.Array, values: jax.Array, carry: Any):
        own_keys, own_values = keys.transpose(0, 2, 1, 3)[None], values.transpose(0, 2, 1, 3)[None]
        stored = zip(carry.stacks, carry.stored(own_keys, own_values), strict=True)
        carry = FullCache(*[write_rows(stack, rows, layer, lengths) for stack, rows in stored])
        collected.append((own_keys, own_values, queries[None, :, 0]))
        shared = {
            "queries": queries,
            "keys": carry.keys,
            "values": carry.values,
            "own_keys": keys,
            "own_values": values,
            "layer": layer,
            "lengths": lengths,
            "positions": positions,
            "window": config.sliding_windows[layer],
        }
        scales = {"key_scales": carry.key_scales, "value_scales": carry.value_scales}
        if tree_mask is None:
            assert key_positions is None
            assert blocks is None
            mixed = over_heads(prefill_attention, result=2, **shared, **scales, key_positions=None)
        elif blocks is None:
            rest = {**scales, "tree_mask": tree_mask, "key_positions": key_positions}
            mixed = over_heads(tree_attention, result=2, **shared, **rest)
        else:
            rest = {"tree_mask": tree_mask, "blocks": blocks[layer], "block_size": block_size}
            mixed = over_heads(sparse_attention, result=2, **shared, **rest)
        return mixed, carry

    hidden, cache = model.hidden(tokens, positions, attend, cache)
    parts = [jnp.concatenate(part) for part in zip(*collected, strict=True)]
    return Rows(hidden, *parts), cache
