"""The arguments and results of `rotate_write` that are no arrays."""

from __future__ import annotations

from typing import NamedTuple

import jax


class HeadNorms(NamedTuple):
    """RMSNorms over a head's numbers.

    Attributes:
      queries, keys: [head_dim], factors.
      eps: added to the mean of the squares.
    """

    queries: jax.Array
    keys: jax.Array
    eps: float


class RotatedHeads(NamedTuple):
    """The heads of new rows, and the cache that contains their K/V.

    Attributes:
      queries: [batch, rows, query_heads, head_dim], rotated.
      own_keys: [batch, rows, kv_heads, head_dim], rotated.
      own_values: [batch, rows, kv_heads, head_dim].
      keys, values: the stacked cache.
    """

    queries: jax.Array
    own_keys: jax.Array
    own_values: jax.Array
    keys: jax.Array
    values: jax.Array
