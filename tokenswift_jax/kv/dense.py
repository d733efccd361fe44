"""The full KV cache: K/V of every committed position of the text, and scratch slots past the committed length."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import cpu
from pallas_kernels.cache_scores import top_blocks, top_positions
from pallas_kernels.implementation import implementation
from pallas_kernels.prefill_attention import prefill_attention
from pallas_kernels.rotate_write import rotate_write
from pallas_kernels.sparse_attention import sparse_attention
from pallas_kernels.tree_attention import tree_attention
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.quantize import CACHE_DTYPES, SCALE_BYTES, quantize_kv
from tokenswift_jax.kv.row_batch import Causal, RowBatch, TreeMask, TreeMaskOverBlocks
from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.models.projected import Projected, Together
from tokenswift_jax.models.rope import Rotation
from tokenswift_jax.parallel.heads import shard_over_heads
from tokenswift_jax.parallel.rules import one_device

BLOCK = 256  # slots; capacities are multiples of it, so that block-wise readers never see a partial block


@pytree
class FullCache:
    """K/V by layer; implements `kv.cache.KVCache`.

    Attributes:
      keys: rotated keys [layers, batch, kv_heads, capacity, head_dim] in the model's dtype or in 8 bits; slot i
        stores position i. Slots at or past a row's committed length are scratch: their content means nothing.
      values: as `keys`, not rotated.
      key_scales, value_scales: float32 [layers, batch, kv_heads, capacity] if K/V are in 8 bits
        (`quantize.quantize_kv`); else None.
      numbers: for each layer its index, int32 [], where the program is for a CPU; else None.
      model_dtype: static, the model's dtype if K/V are in 8 bits; None: K/V are in the model's dtype.
    """

    keys: jax.Array = axes("layers", "batch", "kv_heads", "slots", "head_dim")
    values: jax.Array = axes("layers", "batch", "kv_heads", "slots", "head_dim")
    key_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "slots", default=None)
    value_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "slots", default=None)
    numbers: tuple[jax.Array, ...] | None = axes(default=None)
    model_dtype: jnp.dtype | None = field(default=None, metadata={"static": True})

    @property
    def stacks(self) -> StoredKV:
        """Every array: keys, values, and their scales if there are any."""
        return StoredKV(self.keys, self.values, self.key_scales, self.value_scales)

    def with_stacks(self, stacks: StoredKV) -> Self:
        """Returns the same cache with other arrays."""
        return replace(
            self,
            keys=stacks.keys,
            values=stacks.values,
            key_scales=stacks.key_scales,
            value_scales=stacks.value_scales,
        )

    def first(self, slots: int) -> FullCache:
        """Copies the first `slots` slots of every row."""
        return self.with_stacks(jax.tree.map(lambda stack: stack[:, :, :, :slots], self.stacks))

    def in_order(self, positions: int) -> StoredKV:
        """The K/V of the first `positions` (static), in text order."""
        return self.first(positions).stacks

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def layer_indices(self) -> tuple[jax.Array, ...] | None:
        """The layers' indices: constants, or values of the running program where that is for a CPU, or None.

        With constants, XLA for CPU compiles every layer's reads and writes of the cache by themselves (cost: half of
        the compilation of a 30-layer model's prefill). With values, it copies a cache of one block, which it reads as
        a whole, at every layer.
        """
        if self.numbers is None:
            return tuple(jnp.int32(layer) for layer in range(self.keys.shape[0]))
        return self.numbers if self.keys.shape[-2] > BLOCK else None

    @property
    def dtype(self) -> jnp.dtype:
        """The model's dtype: the dtype of incoming rows and of attention's result."""
        return self.keys.dtype if self.model_dtype is None else self.model_dtype

    @property
    def cache_dtype(self) -> str | None:
        """The name of the cache's 8-bit number format; None if the cache stores numbers of the model's dtype."""
        return next((name for name, dtype in CACHE_DTYPES.items() if self.keys.dtype == dtype), None)

    def stored(self, keys: jax.Array, values: jax.Array) -> StoredKV:
        """Converts keys and values [..., head_dim] to the cache's form."""
        if self.key_scales is None:
            return StoredKV(keys, values)
        (keys, key_scales), (values, value_scales) = (quantize_kv(rows, self.keys.dtype) for rows in (keys, values))
        return StoredKV(keys, values, key_scales, value_scales)

    def converted(self, rows: StoredKV) -> StoredKV:
        """Converts rows of another cache to this cache's form; returns them unchanged if the forms agree."""
        return rows if rows.keys.dtype == self.keys.dtype else self.stored(*rows.read(self.dtype))

    def append(self, layer: int | jax.Array, new: StoredKV, at: jax.Array) -> FullCache:
        """Returns the cache with rows of layers `layer`, `layer` + 1, ... in the slots from `at` (int32 [batch]) on."""
        return self.with_stacks(write_rows(self.stacks, new, layer, at))

    def attend(
        self, layer: int | jax.Array, queries: jax.Array, own: StoredKV, rows: RowBatch, spec: AttentionSpec
    ) -> jax.Array:
        """Attention of rotated queries [batch, rows, query_heads, head_dim] over the slots in use and each other.

        In an 8-bit cache, rows see each other's K/V after rounding, as later rows will. If a row saw its ancestors
        before rounding, plain decoding would give different tokens.
        """
        own_keys, own_values = (x[0].swapaxes(1, 2) for x in own.read(self.dtype))
        given: dict[str, Any] = {
            "queries": queries,
            "keys": self.keys,
            "values": self.values,
            "own_keys": own_keys,
            "own_values": own_values,
            "layer": layer,
            "lengths": rows.lengths,
            "positions": rows.positions,
            "window": spec.window,
            "scale": spec.scale,
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }
        match rows.visible:
            case Causal():
                return shard_over_heads(prefill_attention, result=2, **given, key_positions=None)
            case TreeMask(mask):
                return shard_over_heads(
                    tree_attention, result=2, **given, tree_mask=mask, key_positions=rows.key_positions
                )
            case TreeMaskOverBlocks(mask, blocks, block_size):
                table = blocks[layer]
                return shard_over_heads(
                    sparse_attention, result=2, **given, tree_mask=mask, blocks=table, block_size=block_size
                )

    def extend(
        self,
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        rows: RowBatch,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, StoredKV, jax.Array, FullCache]:
        """Calls `append`, then `attend`.

        XLA updates a donated cache in place on every backend, also inside a while loop, because the write comes before
        the read. With the read first, XLA would keep the old cache and copy it.
        """
        if isinstance(projected, Together) and self.key_scales is None and one_device():
            angles = rotation.cos, rotation.sin
            heads, at = projected.heads, {"layer": layer, "starts": rows.lengths}
            done = rotate_write(heads, *angles, self.keys, self.values, **at, norms=projected.norms)
            queries, new = done.queries, StoredKV(*(x.swapaxes(1, 2)[None] for x in (done.own_keys, done.own_values)))
            cache = replace(self, keys=done.keys, values=done.values)
        else:
            queries, keys, values = projected.rotated(rotation)
            new = self.stored(keys.swapaxes(1, 2)[None], values.swapaxes(1, 2)[None])
            cache = self.append(layer, new, rows.lengths)
        return cache.attend(layer, queries, new, rows, spec), new, queries[None, :, 0], cache

    def keep(self, new: StoredKV, path: jax.Array, at: jax.Array) -> FullCache:
        """Commits: stores, in every layer, the rows along a path int32 [batch, depth] in the slots from `at` on."""
        return self.append(0, new.along(path), at)

    def top_positions(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int
    ) -> jax.Array:
        """Calls `pallas_kernels.cache_scores.top_positions` for a layer."""
        scored = {"query": query, "keys": self.keys, "key_scales": self.key_scales, "layer": layer}
        return shard_over_heads(top_positions, result=1, **scored, begins=begins, ends=ends, count=count)

    def top_blocks(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int, block_size: int
    ) -> jax.Array:
        """Calls `pallas_kernels.cache_scores.top_blocks` for a layer."""
        scored = {"query": query, "keys": self.keys, "key_scales": self.key_scales, "layer": layer}
        sizes = {"count": count, "block_size": block_size}
        return shard_over_heads(top_blocks, result=1, **scored, begins=begins, ends=ends, **sizes)

    def gather(self, layer: int | jax.Array, positions: jax.Array) -> StoredKV:
        """A layer's K/V at positions int32 [batch, kv_heads, count]."""
        stacks = {name: stack for name, stack in vars(self.stacks).items() if stack is not None}
        return StoredKV(**shard_over_heads(_gathered, result=2, **stacks, layer=layer, chosen=positions))

    def part(self, slot: jax.Array, start: jax.Array) -> StoredKV:
        """The K/V [layers, 1, kv_heads, BLOCK, ...] of `BLOCK` positions from `start` on of the text in a slot, both
        int32 []."""
        return slots_of(self.stacks, slot, start, BLOCK)


def slots_of(stacks: StoredKV, row: jax.Array, start: jax.Array, count: int) -> StoredKV:
    """`count` slots from `start` on of one row, int32 [] both, of stacks [layers, batch, kv_heads, slots, ...]."""
    zero = jnp.zeros((), jnp.int32)

    def of(stack: jax.Array) -> jax.Array:
        after = stack.shape[4:]
        at = [zero, jnp.asarray(row, jnp.int32), zero, jnp.asarray(start, jnp.int32), *[zero] * len(after)]
        return lax.dynamic_slice(stack, at, [stack.shape[0], 1, stack.shape[2], count, *after])

    return jax.tree.map(of, stacks)


def _gathered(layer: int | jax.Array, chosen: jax.Array, **stacks: jax.Array) -> dict[str, jax.Array]:
    """A layer of stacks [layers, batch, kv_heads, slots, ...] at slots int32 [batch, kv_heads, count]."""
    batch, kv_heads, _ = chosen.shape
    row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    head = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    return {name: stack[layer, row, head, chosen][None] for name, stack in stacks.items()}


def round_up(size: int, block: int = BLOCK) -> int:
    """The smallest multiple of `block` that is at least `size`."""
    return -(-size // block) * block


def cache_bytes(
    config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype, cache_dtype: str | None = None
) -> int:
    """Bytes of the K/V of `capacity` slots for every layer and row of a batch, scales included."""
    heads = 2 * config.num_layers * batch * config.num_kv_heads * capacity
    if cache_dtype is None:
        return heads * config.head_dim * jnp.dtype(dtype).itemsize
    return heads * (config.head_dim * CACHE_DTYPES[cache_dtype].itemsize + SCALE_BYTES)


def empty_cache(
    config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype, cache_dtype: str | None = None
) -> FullCache:
    """A cache of zeros with `capacity` slots per row.

    Args:
      config: the decoder's configuration.
      batch, capacity: rows, and slots per row.
      dtype: the model's dtype.
      cache_dtype: "int8" or "float8_e4m3", 8-bit numbers with scales; None: numbers of the model's dtype.
    """
    shape, numbers = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim), None
    if implementation() == "reference":
        numbers = tuple(jnp.asarray(layer, jnp.int32) for layer in range(config.num_layers))
    if cache_dtype is None:
        return FullCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), numbers=numbers)
    stored = CACHE_DTYPES[cache_dtype]
    cache = FullCache(jnp.zeros(shape, stored), jnp.zeros(shape, stored), numbers=numbers, model_dtype=jnp.dtype(dtype))
    zeros = (jnp.zeros(shape[:4], jnp.float32) for _ in range(2))
    return replace(cache, **dict(zip(("key_scales", "value_scales"), zeros, strict=True)))


def write_rows(stacks: Any, rows: Any, layer: int | jax.Array, starts: jax.Array) -> Any:
    """Writes rows [layers', batch, kv_heads, rows, ...] into stacks [layers, batch, kv_heads, slots, ...] of the same
    structure: batch row b goes to the slots from starts[b] on, and layers' to the layers from `layer` on.

    A loop makes one update for each batch row. With a vmapped update, XLA would copy the cache; with unrolled updates,
    the program would grow with the batch. The caller keeps starts + rows within capacity.
    """
    first, zero = jnp.asarray(layer, jnp.int32), jnp.zeros((), jnp.int32)
    batch = starts.shape[0]
    if batch > 1 and cpu.serves(1, *jax.tree.leaves((stacks, rows))):
        from pallas_kernels.cpu.write import write_rows as write_in_place

        return jax.tree.map(lambda stack, new: write_in_place(stack, new, layer, starts), stacks, rows)

    def one(index: jax.Array, stacks: Any) -> Any:
        start = lax.dynamic_index_in_dim(starts, index, keepdims=False)

        def write(stack: jax.Array, rows: jax.Array) -> jax.Array:
            # Without the barrier, XLA for TPU confuses the rows with the stack when there are several rows a text, and
            # fails to compile (libtpu 0.0.42.1, batch 8, 16 rows).
            row = rows if batch == 1 else lax.optimization_barrier(lax.dynamic_slice_in_dim(rows, index, 1, axis=1))
            return lax.dynamic_update_slice(stack, row, (first, index, zero, start, *[zero] * (stack.ndim - 4)))

        return jax.tree.map(write, stacks, rows)

    return one(zero, stacks) if batch == 1 else lax.fori_loop(zero, jnp.int32(batch), one, stacks)


def write_chosen_rows(
    stacks: Any, rows: Any, layer: int | jax.Array, starts: jax.Array, source: jax.Array, meant: jax.Array
) -> Any:
    """As `write_rows`, into consecutive slots; some of them keep their content.

    Batch row b's slot starts[b] + i gets the row source[b, i] if meant[b, i]. The update covers the other slots with
    what they contain: with a scatter, XLA for TPU would change the layout of the whole stack.

    Args:
      stacks, rows, layer, starts: as for `write_rows`.
      source: int32 [batch, most], indices of rows.
      meant: bool [batch, most].
    """
    first, zero = jnp.asarray(layer, jnp.int32), jnp.zeros((), jnp.int32)
    batch, most = meant.shape
    source, meant = source[None, :, None, :], meant[None, :, None, :]

    def of_slots(rows: jax.Array) -> jax.Array:
        return jnp.take_along_axis(rows, source if rows.ndim == 4 else source[..., None], axis=3)

    taken = jax.tree.map(of_slots, rows)

    def one(index: jax.Array, stacks: Any) -> Any:
        start = lax.dynamic_index_in_dim(starts, index, keepdims=False)
        replaced = lax.dynamic_slice_in_dim(meant, index, 1, axis=1)

        def write(stack: jax.Array, rows: jax.Array) -> jax.Array:
            place = (first, index, zero, start, *[zero] * (stack.ndim - 4))
            old = lax.dynamic_slice(stack, place, (rows.shape[0], 1, stack.shape[2], most, *stack.shape[4:]))
            row = lax.dynamic_slice_in_dim(rows, index, 1, axis=1)
            row = jnp.where(replaced if stack.ndim == 4 else replaced[..., None], row, old)
            return lax.dynamic_update_slice(stack, row, place)

        return jax.tree.map(write, stacks, taken)

    return one(zero, stacks) if batch == 1 else lax.fori_loop(zero, jnp.int32(batch), one, stacks)
