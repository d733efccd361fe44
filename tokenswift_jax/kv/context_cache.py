"""The full KV cache with its length split over the `context` axis of a mesh: a device stores and reads its own slots.

No K/V cross between devices, but those that a selection copies into a draft cache. A forward gives one collective a
layer: the results of attention, merged by their log-sum-exp.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from pallas_kernels.cache_scores import top_blocks
from pallas_kernels.prefill_attention.reference import causal_mask
from pallas_kernels.sparse_attention import sparse_attention
from pallas_kernels.tree_attention import tree_attention
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.dense import BLOCK, FullCache, empty_cache, slots_of, write_chosen_rows
from tokenswift_jax.kv.row_batch import Causal, RowBatch, TreeMask, TreeMaskOverBlocks
from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.parallel import context
from tokenswift_jax.parallel.island import island
from tokenswift_jax.parallel.mesh_spec import CONTEXT
from tokenswift_jax.parallel.rules import island_spec

# The specs of islands: the cache's arrays,
_STACK = island_spec("layers", "batch", "kv_heads", "context")
_ROWS = island_spec(None, None, "heads")  # rows of K/V, queries, and results of attention,
_HEADS = island_spec("batch", "heads")  # and arrays [batch, heads, ...]


@pytree
class ContextCache(FullCache):
    """K/V by layer, dealt to devices in turns; implements `kv.cache.KVCache`. Programs use it on a mesh.

    Attributes:
      keys: rotated keys [layers, batch, kv_heads, devices, slots, head_dim]; slot s of device d stores position
        `cyclic.position(s, d)`.
      values: as `keys`, not rotated.
      key_scales, value_scales: float32 [layers, batch, kv_heads, devices, slots], or None (`FullCache`).
      numbers, model_dtype: as in `FullCache`.
      cyclic: static, the turns of the devices.
    """

    keys: jax.Array = axes("layers", "batch", "kv_heads", "context", "slots", "head_dim")
    values: jax.Array = axes("layers", "batch", "kv_heads", "context", "slots", "head_dim")
    key_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "context", "slots", default=None)
    value_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "context", "slots", default=None)
    cyclic: Cyclic = field(default=Cyclic(), metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Positions of a text that all devices together can store."""
        return self.keys.shape[3] * self.keys.shape[4]

    def first(self, slots: int) -> ContextCache:
        """Copies slots of every row that store at least its first `slots` positions."""
        kept = min(self.cyclic.slots(slots), self.keys.shape[4])
        return self.with_stacks(jax.tree.map(lambda stack: stack[:, :, :, :, :kept], self.stacks))

    def in_order(self, positions: int) -> StoredKV:
        """The K/V of the first `positions` (static), in text order, on all devices."""
        devices, block = self.cyclic.devices, self.cyclic.block
        turns = -(-positions // (devices * block))

        def own(stacks: StoredKV) -> StoredKV:
            def of(stack: jax.Array) -> jax.Array:
                every = lax.all_gather(stack[:, :, :, 0, : turns * block], CONTEXT, axis=3)
                apart = every.reshape(*every.shape[:4], turns, block, *every.shape[5:]).swapaxes(3, 4)
                return apart.reshape(*apart.shape[:3], -1, *apart.shape[6:])[:, :, :, :positions]

            return jax.tree.map(of, stacks)

        return island(own, in_specs=(_STACK,), out_specs=_ROWS)(self.stacks)

    def append(self, layer: int | jax.Array, new: StoredKV, at: jax.Array) -> ContextCache:
        """As `FullCache.append`; each device writes the rows that it stores."""

        def own(stacks: StoredKV, new: StoredKV, layer: jax.Array, at: jax.Array) -> StoredKV:
            written = _written(_of_device(stacks), new, layer, at, self.cyclic)
            return jax.tree.map(lambda stack: stack[:, :, :, None], written)

        write = island(own, in_specs=(_STACK, _ROWS, P(), P()), out_specs=_STACK)
        return self.with_stacks(write(self.stacks, new, jnp.asarray(layer, jnp.int32), at))

    def attend(
        self, layer: int | jax.Array, queries: jax.Array, own: StoredKV, rows: RowBatch, spec: AttentionSpec
    ) -> jax.Array:
        """As `FullCache.attend`: each device attends over its own slots, and device 0 over the rows themselves too.

        The rows of a prompt's chunk take the same way: `tree_attention` under a causal mask.
        """
        own_keys, own_values = (x[0].swapaxes(1, 2) for x in own.read(self.dtype))
        given = {
            "queries": queries,
            "own_keys": own_keys,
            "own_values": own_values,
            "layer": jnp.asarray(layer, jnp.int32),
            "lengths": rows.lengths,
            "positions": rows.positions,
        }
        specs = dict.fromkeys(given, P()) | dict.fromkeys(("queries", "own_keys", "own_values"), _ROWS)
        match rows.visible:
            case Causal():
                given["tree_mask"] = causal_mask(*rows.tokens.shape)
            case TreeMask(mask):
                given["tree_mask"] = mask
            case TreeMaskOverBlocks(mask, blocks, block_size):
                assert block_size == self.cyclic.block, f"blocks of {block_size} in turns of {self.cyclic.block}"
                given["tree_mask"], given["blocks"] = mask, blocks[layer]
                specs["blocks"] = _HEADS
        specs["tree_mask"] = P()

        def of_device(stacks: StoredKV, given: dict[str, Any]) -> jax.Array:
            return context.attention(*self._attended(_of_device(stacks), given, spec))

        return island(of_device, in_specs=(_STACK, specs), out_specs=_ROWS)(self.stacks, given)

    def _attended(self, stacks: StoredKV, given: dict[str, Any], spec: AttentionSpec) -> tuple[jax.Array, jax.Array]:
        """A device's attention over its own slots, and the logarithm of its denominator."""
        device, positions, mask = context.this_device(), given["positions"], given["tree_mask"]
        if spec.window is not None:
            mask = mask & (positions[:, None, :] > positions[:, :, None] - spec.window)
            # The kernels compare slots with positions. A row sees this device's slots from `oldest` on; among the rows
            # themselves the comparison hides no row that the mask shows, since slots grow slower than positions.
            oldest = self.cyclic.below(jnp.maximum(positions - spec.window + 1, 0), device)
            positions = oldest - 1 + spec.window
        arguments = {
            **given,
            "keys": stacks.keys,
            "values": stacks.values,
            "key_scales": stacks.key_scales,
            "value_scales": stacks.value_scales,
            "lengths": self.cyclic.below(given["lengths"], device),
            "positions": positions,
            "tree_mask": mask & (device == 0),
            "window": spec.window,
            "scale": spec.scale,
            "return_lse": True,
        }
        if "blocks" not in given:
            return tree_attention(**arguments, key_positions=None)
        blocks, devices = given["blocks"], self.cyclic.devices
        mine = (blocks >= 0) & (blocks % devices == device)
        arguments["blocks"] = jnp.where(mine, blocks // devices, jnp.int32(-1))
        return sparse_attention(**arguments, block_size=self.cyclic.block)

    def top_positions(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int
    ) -> jax.Array:
        """As `FullCache.top_positions`: the best of every device's best."""
        return self._top(layer, query, begins, ends, count, 1)

    def top_blocks(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int, block_size: int
    ) -> jax.Array:
        """As `FullCache.top_blocks`: the best of every device's best."""
        assert block_size == self.cyclic.block, f"blocks of {block_size} in turns of {self.cyclic.block}"
        return self._top(layer, query, begins, ends, count, block_size)

    def _top(
        self, layer: int | jax.Array, query: jax.Array, begins: jax.Array, ends: jax.Array, count: int, block: int
    ) -> jax.Array:
        def own(stacks: StoredKV, query: jax.Array, layer: jax.Array, begins: jax.Array, ends: jax.Array) -> jax.Array:
            stacks, device = _of_device(stacks), context.this_device()
            scores, numbers = top_blocks(
                query,
                stacks.keys,
                key_scales=stacks.key_scales,
                layer=layer,
                begins=self.cyclic.below(begins, device),
                ends=self.cyclic.below(ends, device),
                count=min(count, stacks.keys.shape[3] // block),
                block_size=block,
                with_scores=True,
            )
            of_text = self.cyclic.position(numbers * block, device) // block
            return context.best(scores, jnp.where(numbers < 0, numbers, of_text), count)

        find = island(own, in_specs=(_STACK, _HEADS, P(), P(), P()), out_specs=_HEADS)
        return find(self.stacks, query, jnp.asarray(layer, jnp.int32), begins, ends)

    def gather(self, layer: int | jax.Array, positions: jax.Array) -> StoredKV:
        """As `FullCache.gather`, on all devices: each gives those that it stores."""

        def own(stacks: StoredKV, layer: jax.Array, positions: jax.Array) -> StoredKV:
            batch, kv_heads, _ = positions.shape
            row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
            head = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
            mine, slots = self.cyclic.device(positions) == context.this_device(), self.cyclic.slot(positions)

            def of(stack: jax.Array) -> jax.Array:
                taken = stack[layer, row, head, slots]
                return context.owned(taken, mine if taken.ndim == 3 else mine[..., None])[None]

            return jax.tree.map(of, _of_device(stacks))

        find = island(own, in_specs=(_STACK, P(), _HEADS), out_specs=_ROWS)
        return find(self.stacks, jnp.asarray(layer, jnp.int32), positions)

    def part(self, slot: jax.Array, start: jax.Array) -> StoredKV:
        """As `FullCache.part`, on all devices: each gives the positions that it stores."""

        def own(stacks: StoredKV, slot: jax.Array, start: jax.Array) -> StoredKV:
            stacks, device = _of_device(stacks), context.this_device()
            positions = start + jnp.arange(BLOCK, dtype=jnp.int32)
            most = self.cyclic.most(BLOCK)
            begin = jnp.minimum(self.cyclic.below(start, device), stacks.keys.shape[3] - most)
            mine, places = self.cyclic.device(positions) == device, self.cyclic.slot(positions) - begin
            mine, places = mine[None, None, None, :], jnp.clip(places, 0, most - 1)

            def of(rows: jax.Array) -> jax.Array:
                return context.owned(rows[:, :, :, places], mine if rows.ndim == 4 else mine[..., None])

            return jax.tree.map(of, slots_of(stacks, slot, begin, most))

        return island(own, in_specs=(_STACK, P(), P()), out_specs=_ROWS)(self.stacks, slot, start)


def full_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: jnp.dtype,
    cache_dtype: str | None = None,
    cyclic: Cyclic | None = None,
) -> FullCache:
    """A cache of zeros for at least `capacity` positions per row, dealt to devices if `cyclic` says so.

    The other arguments are those of `dense.empty_cache`.
    """
    if cyclic is None:
        return empty_cache(config, batch, capacity, dtype, cache_dtype)
    slots = cyclic.slots(capacity)
    whole = empty_cache(config, batch, cyclic.devices * slots, dtype, cache_dtype)
    dealt = jax.tree.map(
        lambda stack: stack.reshape(*stack.shape[:3], cyclic.devices, slots, *stack.shape[4:]), whole.stacks
    )
    return ContextCache(**vars(dealt), numbers=whole.numbers, model_dtype=whole.model_dtype, cyclic=cyclic)


def _of_device(stacks: StoredKV) -> StoredKV:
    """A device's own part of the cache's arrays, [layers, batch, kv_heads, slots, ...]; inside an island."""
    return jax.tree.map(lambda stack: stack.reshape(*stack.shape[:3], *stack.shape[4:]), stacks)


def _written(stacks: StoredKV, new: StoredKV, layer: jax.Array, at: jax.Array, cyclic: Cyclic) -> StoredKV:
    """A device's arrays with the rows that it stores of `new` [layers', batch, kv_heads, rows, ...], whose first row of
    each text is that of position `at` int32 [batch].

    A device's slots for consecutive positions follow each other, as many as it can need.
    """
    device = context.this_device()
    rows, slots = new.keys.shape[3], stacks.keys.shape[3]
    most = cyclic.most(rows)
    begins = jnp.minimum(cyclic.below(at, device), slots - most)
    stored = cyclic.position(begins[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :], device)
    source = stored - at[:, None]  # the row that each slot takes
    meant = (source >= 0) & (source < rows)
    return write_chosen_rows(stacks, new, layer, begins, jnp.clip(source, 0, rows - 1), meant)
