"""The rows of one forward: tokens, where they are in the text, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Causal:
    """The rows follow each other in the text, and so do the cache's slots: a chunk of a prompt."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMask:
    """The rows see every slot in use, and of each other what a mask says.

    Attributes:
      mask: bool [batch, rows, rows]; row i sees row j. Every row sees itself.
    """

    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMaskOverBlocks:
    """The rows see some blocks of slots, and of each other what a mask says.

    Attributes:
      mask: bool [batch, rows, rows]; row i sees row j. Every row sees itself.
      blocks: int32 [layers, batch, kv_heads, table], the blocks that each layer and KV head sees, -1 for none. Block i
        holds the slots i * block_size .. (i + 1) * block_size - 1, of which those in use count.
      block_size: static, slots a block.
    """

    mask: jax.Array
    blocks: jax.Array
    block_size: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowBatch:
    """Rows that one forward computes over a cache's first slots and over each other.

    Attributes:
      tokens: int32 [batch, rows].
      positions: int32 [batch, rows], each row's index in the text.
      lengths: int32 [batch], slots in use. The rows' own keys and values go into the slots from there on, so lengths +
        rows must not exceed the capacity.
      visible: what a row sees.
      key_positions: int32 [layers, batch, kv_heads, capacity], the index in the text of each slot's key where slots are
        not in text order and some layer has a sliding window; only with `TreeMask`. None: slot i holds position i.
    """

    tokens: jax.Array
    positions: jax.Array
    lengths: jax.Array
    visible: Causal | TreeMask | TreeMaskOverBlocks
    key_positions: jax.Array | None = None


def next_rows(tokens: jax.Array, start: jax.Array) -> RowBatch:
    """Tokens int32 [batch, rows] that follow the first `start` (int32 [batch]) positions of their texts."""
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    return RowBatch(tokens, positions, start, Causal())
