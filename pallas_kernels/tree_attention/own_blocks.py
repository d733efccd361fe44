"""The number of blocks of own rows that a tile of rows sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def own_blocks(tree_mask: jax.Array, group: int, tile: int, columns: int) -> jax.Array:
    """The number of blocks of `columns` own rows, up to the last that a row of the tile sees: int32 [batch, tiles].

    In a causal chunk a tile needs no block past its own rows, so the kernel skips almost half of the blocks.

    Args:
      tree_mask: bool [batch, rows, rows]; row i sees row j.
      group: query heads of a KV head; the rows of a tile are rows * group in that order.
      tile, columns: rows of a tile, group included, and own rows of a block.
    """
    batch, rows, _ = tree_mask.shape
    tiles = pl.cdiv(rows * group, tile)
    if rows <= columns:
        return jnp.ones((batch, tiles), jnp.int32)
    ends = jnp.where(tree_mask, jnp.arange(1, rows + 1, dtype=jnp.int32)[None, None, :], 0).max(axis=2)
    row = jnp.minimum(jnp.arange(tiles * tile, dtype=jnp.int32) // group, rows - 1)
    return pl.cdiv(ends[:, row].reshape(batch, tiles, tile).max(axis=2), columns)
