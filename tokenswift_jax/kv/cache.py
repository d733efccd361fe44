"""The interface of every KV cache. A forward, a commit and a draft cache reach a KV cache through it alone."""

from __future__ import annotations

from typing import Protocol, Self

import jax
import jax.numpy as jnp

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.quantize import dequantize_kv
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation


@pytree
class StoredKV:
    """K/V of some rows in the form in which a cache stores them.

    Attributes:
      keys: [layers, batch, kv_heads, rows, head_dim], rotated.
      values: as `keys`, not rotated.
      key_scales, value_scales: float32 [layers, batch, kv_heads, rows], the factors of 8-bit numbers; None if K/V are
        in the model's dtype.
    """

    keys: jax.Array = axes("layers", "batch", "kv_heads", "rows", "head_dim")
    values: jax.Array = axes("layers", "batch", "kv_heads", "rows", "head_dim")
    key_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "rows", default=None)
    value_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "rows", default=None)

    def read(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values [layers, batch, kv_heads, rows, head_dim] in `dtype`, as attention reads them."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return dequantize_kv(self.keys, self.key_scales, dtype), dequantize_kv(self.values, self.value_scales, dtype)

    def along(self, path: jax.Array) -> StoredKV:
        """Returns the rows along a path, int32 [batch, depth]."""
        at = path[None, :, None, :]
        return jax.tree.map(
            lambda rows: jnp.take_along_axis(rows, at if rows.ndim == 4 else at[..., None], axis=3), self
        )


class KVCache(Protocol):
    """K/V of a batch of texts, by layer: a pytree.

    Its methods are pure; XLA updates the arrays of a donated cache in place. `layer` is an int or a traced int32 [].
    `at` is int32 [batch], the slot of each text's first new row.
    """

    @property
    def capacity(self) -> int:
        """Slots per text."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """The model's dtype: the dtype of incoming rows and of attention's result."""
        ...

    @property
    def layer_indices(self) -> tuple[jax.Array, ...] | None:
        """The layers' indices, int32 [] each, if the methods should get them in place of ints."""
        ...

    def stored(self, keys: jax.Array, values: jax.Array) -> StoredKV:
        """Converts keys and values [..., head_dim] to the cache's form."""
        ...

    def append(self, layer: int | jax.Array, new: StoredKV, at: jax.Array) -> Self:
        """Returns the cache with rows of layers `layer`, `layer` + 1, ... in the slots from `at` on."""
        ...

    def attend(
        self, layer: int | jax.Array, queries: jax.Array, own: StoredKV, rows: RowBatch, spec: AttentionSpec
    ) -> jax.Array:
        """Attention [batch, rows, query_heads, head_dim] of rotated queries over the slots in use and over the rows
        themselves. `own` contains the rows' K/V; for `Causal` rows the cache contains them too."""
        ...

    def extend(
        self,
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        rows: RowBatch,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, StoredKV, jax.Array, Self]:
        """Calls `append` and then `attend` for a layer's queries, keys and values, not yet rotated.

        The cache decides which projections it rotates. Returns the mixed values, the stored K/V (one layer), row 0's
        query [1, batch, query_heads, head_dim] in the form that `top_positions` takes, and the cache.
        """
        ...

    def keep(self, new: StoredKV, path: jax.Array, at: jax.Array) -> Self:
        """Commits: stores, in every layer, the rows along a path int32 [batch, depth] in the slots from `at` on."""
        ...

    def top_positions(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int
    ) -> jax.Array:
        """Positions int32 [batch, kv_heads, count] of the best-scoring keys under a query [batch, query_heads,
        head_dim] among begins .. ends-1 (int32 [batch] each), best first; -1 fills the rest if there are too few."""
        ...

    def top_blocks(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int, block_size: int
    ) -> jax.Array:
        """Does the same for blocks of slots; a block's score is that of its best key."""
        ...

    def gather(self, layer: int | jax.Array, positions: jax.Array) -> StoredKV:
        """A layer's K/V at positions int32 [batch, kv_heads, count]."""
        ...

    def in_order(self, positions: int) -> StoredKV:
        """The K/V of the first `positions` (static) of every text, in text order."""
        ...

    def first(self, slots: int) -> Self:
        """The first slots (static) of every text."""
        ...

    def part(self, slot: jax.Array, start: jax.Array) -> StoredKV:
        """The K/V of `kv.dense.BLOCK` positions from `start` on of the text in a slot, both int32 [], in text order."""
        ...
