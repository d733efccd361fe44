"""One forward of the decoder over rows that extend a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.cache import KVCache, StoredKV
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation
from tokenswift_jax.parallel.stages import OwnLayers

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
    given = rows.tokens, rows.positions, _attention(rows)
    hidden, (new, query), cache = model.hidden(*given, cache, cache.layer_indices)
    return Rows(hidden, new, query), cache


def forward_own_layers(model: Decoder, rows: RowBatch, x: jax.Array, cache: _Cache) -> tuple[jax.Array, _Cache]:
    """As `forward_rows`, through the layers of one stage of a mesh alone.

    x is [batch, rows, hidden_size], the output of the layers before; returns that of the stage's last layer.
    """
    layers = model.own_layers(rows.positions, _attention(rows), cache.layer_indices)

    def without_outputs(run: Any) -> Any:
        def rows_and_cache(x: jax.Array, cache: _Cache) -> tuple[jax.Array, None, _Cache]:
            x, _, cache = run(x, cache)
            return x, None, cache

        return rows_and_cache

    own = OwnLayers(tuple(map(without_outputs, layers.runs)), layers.kinds)
    x, _, cache = own.run_if(jnp.ones((), bool), x, None, cache)
    return x, cache


def _attention(rows: RowBatch) -> Any:
    """Attention of rows over a cache, for `Decoder.hidden`."""

    def attend(
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        cache: _Cache,
    ) -> tuple[jax.Array, tuple[StoredKV, jax.Array], _Cache]:
        mixed, new, query, cache = cache.extend(layer, projected, rotation, rows, spec)
        return mixed, jax.tree.map(lambda layer: layer[0], (new, query)), cache

    return attend
