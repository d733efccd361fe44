"""How far a tile of rows sees into the rows' own block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def own_blocks(tree_mask: jax.Array, group: int, tile: int, columns: int) -> jax.Array:
    """int32 [batch, tiles]: blocks of `columns` own rows up to the last that a row of the tile sees.

    Of a causal chunk a tile needs no block past its own rows, which spares nearly half of them.

    Args:
      tree_mask: bool [batch, rows, rows]; row i sees row j.
      group: query heads of a KV head; a tile's rows are rows * group in that order.
      tile, columns: rows of a tile, group included, and own rows of a block.
    """
    batch, rows, _ = tree_mask.shape
    tiles = pl.cdiv(rows * group, tile)
    if rows <= columns:
        return jnp.ones((batch, tiles), jnp.int32)
    ends = jnp.where(tree_mask, jnp.arange(1, rows + 1, dtype=jnp.int32)[None, None, :], 0).max(axis=2)
    row = jnp.minimum(jnp.arange(tiles * tile, dtype=jnp.int32) // group, rows - 1)
    return pl.cdiv(ends[:, row].reshape(batch, tiles, tile).max(axis=2), columns)
