"""What every KV cache does: the only way in which a forward, a commit or a draft cache touches one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.quantize import dequantized
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.rope import Rotation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StoredKV:
    """Keys and values of some rows in the form in which a cache stores them.

    Attributes:
      keys: [layers, batch, kv_heads, rows, head_dim], rotated.
      values: likewise.
      key_scales, value_scales: float32 [layers, batch, kv_heads, rows], by which 8-bit numbers are multiplied; None
        where keys and values are in the model's dtype.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None

    def read(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Keys and values [layers, batch, kv_heads, rows, head_dim] in `dtype`, as attention reads them."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return dequantized(self.keys, self.key_scales, dtype), dequantized(self.values, self.value_scales, dtype)

    def along(self, path: jax.Array) -> StoredKV:
        """The rows of a path int32 [batch, depth]."""
        at = path[None, :, None, :]
        return jax.tree.map(
            lambda rows: jnp.take_along_axis(rows, at if rows.ndim == 4 else at[..., None], axis=3), self
        )


class KVCache(Protocol):
    """Keys and values of a batch of texts, by layer: a pytree.

    Its methods are pure; the arrays of a donated cache change in place. `layer` is an int or a traced int32 []. `at`
    are int32 [batch], the slots that the first row of each text takes.
    """

    @property
    def capacity(self) -> int:
        """Slots a text."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """The model's dtype, in which rows come and attention's result goes."""
        ...

    def stored(self, keys: jax.Array, values: jax.Array) -> StoredKV:
        """Keys and values [..., head_dim] in the cache's form."""
        ...

    def append(self, layer: int | jax.Array, new: StoredKV, at: jax.Array) -> Self:
        """The cache with rows of the layers `layer` .. in the slots from `at` on."""
        ...

    def attend(
        self, layer: int | jax.Array, queries: jax.Array, own: StoredKV, rows: RowBatch, spec: AttentionSpec
    ) -> jax.Array:
        """Attention [batch, rows, query_heads, head_dim] of rotated queries over the slots in use and over the rows
        themselves, whose keys and values are `own` and, for `Causal` rows, in the cache too."""
        ...

    def extend(
        self,
        layer: int | jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        rotation: Rotation,
        rows: RowBatch,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, StoredKV, jax.Array, Self]:
        """`append` and then `attend` for a layer's projections [batch, rows, heads, head_dim], not yet rotated.

        The cache decides what it rotates. Returns the mixed values, what was stored (one layer), row 0's query as
        `top_positions` takes it [1, batch, query_heads, head_dim], and the cache.
        """
        ...

    def keep(self, new: StoredKV, path: jax.Array, at: jax.Array) -> Self:
        """The cache after a commit: of all layers' rows those along a path int32 [batch, depth], from `at` on."""
        ...

    def top_positions(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int
    ) -> jax.Array:
        """Positions int32 [batch, kv_heads, count] of the best-scoring keys under a query [batch, query_heads,
        head_dim] among begins .. ends-1 (int32 [batch] each), best first; -1 where there are too few."""
        ...

    def top_blocks(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int, block_size: int
    ) -> jax.Array:
        """The same for blocks of slots, each of which scores as its best key does."""
        ...

    def gather(self, layer: int | jax.Array, positions: jax.Array) -> StoredKV:
        """What a layer holds at positions int32 [batch, kv_heads, count]."""
        ...

    def prefix(self, slot: jax.Array, length: int) -> StoredKV:
        """The first `length` (static) positions of the text in a slot (int32 []) of the batch; a batch of one."""
        ...

    def insert(self, slot: jax.Array, prefix: StoredKV) -> Self:
        """The cache with another text's first positions in a slot of the batch."""
        ...
