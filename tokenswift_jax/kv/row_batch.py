"""The rows of one forward: their tokens, their positions in the text, and the slots and rows that they see."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Causal:
    """The rows are consecutive in the text, and the cache's slots are in text order: a chunk of a prompt."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMask:
    """The rows see every slot in use; a mask says which rows they see.

    Attributes:
      mask: bool [batch, rows, rows]; row i sees row j. Every row sees itself.
    """

    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMaskOverBlocks:
    """The rows see some blocks of slots; a mask says which rows they see.

    Attributes:
      mask: bool [batch, rows, rows]; row i sees row j. Every row sees itself.
      blocks: int32 [layers, batch, kv_heads, table], the blocks that each layer and KV head sees, -1 for none. Block i
        covers slots i * block_size .. (i + 1) * block_size - 1; a row sees those of them that are in use.
      block_size: static, slots per block.
    """

    mask: jax.Array
    blocks: jax.Array
    block_size: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowBatch:
    """The rows of one forward, which attend to a cache's first slots and to each other.

    Attributes:
      tokens: int32 [batch, rows].
      positions: int32 [batch, rows], each row's index in the text.
      lengths: int32 [batch], slots in use. The forward writes the rows' own K/V to the slots from there on, so
        lengths + rows must not exceed the capacity.
      visible: the slots and rows that each row sees.
      key_positions: int32 [layers, batch, kv_heads, capacity], the index in the text of each slot's key; needed if
        slots are not in text order and some layer has a sliding window; only with `TreeMask`. None: slot i stores
        position i.
    """

    tokens: jax.Array
    positions: jax.Array
    lengths: jax.Array
    visible: Causal | TreeMask | TreeMaskOverBlocks
    key_positions: jax.Array | None = None


def next_rows(tokens: jax.Array, start: jax.Array) -> RowBatch:
    """The rows of tokens int32 [batch, rows] that follow the first `start` (int32 [batch]) positions of their texts."""
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    return RowBatch(tokens, positions, start, Causal())
