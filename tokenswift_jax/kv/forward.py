"""One forward of the decoder over rows that extend a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import jax

from tokenswift_jax.kv.cache import KVCache, StoredKV
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation

_Cache = TypeVar("_Cache", bound=KVCache)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The results of one forward for its rows.

    Attributes:
      hidden: the last layer's output [batch, rows, hidden_size], before the final norm.
      new: K/V of the rows themselves, of all layers, as the cache stores them.
      query: rotated queries of row 0, [layers, batch, query_heads, head_dim].
    """

    hidden: jax.Array
    new: StoredKV
    query: jax.Array


def forward_rows(model: Decoder, rows: RowBatch, cache: _Cache) -> tuple[Rows, _Cache]:
    """Computes rows over a cache's first slots and over each other; their K/V go into the slots from `rows.lengths` on.

    Args:
      model: the decoder, merged from its parameters.
      rows: the rows to compute.
      cache: the full cache, or a draft cache in the same layout.
    """

    def attend(
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        cache: _Cache,
    ) -> tuple[jax.Array, tuple[StoredKV, jax.Array], _Cache]:
        mixed, new, query, cache = cache.extend(layer, projected, rotation, rows, spec)
        return mixed, jax.tree.map(lambda layer: layer[0], (new, query)), cache

    hidden, (new, query), cache = model.hidden(rows.tokens, rows.positions, attend, cache, cache.layer_indices)
    return Rows(hidden, new, query), cache
