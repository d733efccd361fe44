"""The draft cache: a small KV cache of sinks, the best-scoring positions and the newest ones (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.cache_scores import top_positions
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.dense import FullCache, round_up
from tokenswift_jax.kv.draft_cache import DraftView, when
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.heads import over_heads

FAR_AWAY = -(2**30)  # position of an empty slot: outside every sliding window


@pytree
class DraftCache:
    """Keys and values chosen per layer and KV head.

    Attributes:
      cache: [layers, batch, kv_heads, size + scratch (rounded up), head_dim]; while a text fits, slot i holds
        position i; afterwards sinks, then selected positions in descending score, whose tail newer positions replace.
      positions: int32 [layers, batch, kv_heads, slots], the position each slot holds.
      selected: int32 [batch], committed length at the latest selection, 0 before the first.
    """

    cache: FullCache
    positions: jax.Array = axes("layers", "batch", "kv_heads", "slots")
    selected: jax.Array = axes("batch")


@dataclass(frozen=True)
class DraftCacheShape:
    """A draft cache that copies single positions; a `drafting.DraftKind`. Static sizes, in slots.

    Attributes:
      size: slots that hold positions of the text.
      sinks: leading slots that hold positions 0 .. sinks-1 for ever.
      scratch: slots past `size` for the root and a drafted chain.
      refresh_interval: select again after so many committed tokens; None: when no replaceable slot is left.
      narrow: keys and values are kept in 8 bits.
    """

    size: int
    sinks: int
    scratch: int
    refresh_interval: int | None
    narrow: bool = False

    @property
    def copied_slots(self) -> int:
        """Slots whose keys and values are copied, a row of the batch."""
        return self.size + self.scratch

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype) -> DraftCache:
        """A draft cache that holds nothing."""
        slots = round_up(self.size + self.scratch)
        dims = (config.num_layers, batch, config.num_kv_heads, slots)
        zeros = jnp.zeros((*dims, config.head_dim), jnp.int8 if self.narrow else dtype)
        cache = FullCache(zeros, zeros.copy())
        if self.narrow:
            cache = replace(cache, key_scales=jnp.zeros(dims), value_scales=jnp.zeros(dims))
        positions = jnp.full(dims, FAR_AWAY, jnp.int32)
        return DraftCache(cache, positions, jnp.zeros((batch,), jnp.int32))

    def slots_in_use(self, committed: jax.Array) -> jax.Array:
        """int32 [batch]: how many leading slots hold positions when `committed` tokens are committed."""
        return jnp.minimum(committed, self.size)

    def view(
        self, draft: DraftCache, full: FullCache, committed: jax.Array, depth: jax.Array, config: ModelConfig
    ) -> DraftView:
        """What a row reads that follows `depth` drafted ones."""
        positions = draft.positions if _windowed(config) else None
        return DraftView(draft.cache, self.slots_in_use(committed) + depth, positions, None, None)

    def written(
        self,
        draft: DraftCache,
        full: FullCache,
        cache: FullCache,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[DraftCache, FullCache]:
        """Takes back the view's cache, into which the row at `depth` has been written."""
        positions = draft.positions
        if _windowed(config):
            # Later rows of a drafted chain must know where this one stands.
            slots = jnp.arange(positions.shape[3], dtype=jnp.int32)
            here = slots[None, :] == (self.slots_in_use(committed) + depth)[:, None]
            positions = jnp.where(here[None, :, None, :], (committed + depth)[None, :, None, None], positions)
        return replace(draft, cache=cache, positions=positions), full

    def advance(
        self,
        draft: DraftCache,
        full: FullCache,
        new_keys: jax.Array,
        new_values: jax.Array,
        before: jax.Array,
        after: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> DraftCache:
        """Takes in newly committed positions before .. after-1, selecting anew where that falls due.

        Args:
          draft: the draft cache at `before` committed tokens.
          full: the full cache, with the new positions in place.
          new_keys, new_values: [layers, batch, kv_heads, most, head_dim] of positions before ..,
            `most` >= after - before.
          before, after: int32 [batch], committed lengths.
          query: [layers, batch, query_heads, head_dim], the root's in the pass that committed them.
          config: static.
        """
        most = new_keys.shape[3]
        position = before[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
        fits = position < self.size
        newest_first = self.size - 1 - (position - draft.selected[:, None])
        slot = jnp.where((draft.selected[:, None] == 0) & fits, position, newest_first)
        slots = draft.positions.shape[3]
        lowest = jnp.where(draft.selected[:, None] > 0, jnp.int32(self.sinks), jnp.int32(0))
        live = (position < after[:, None]) & (slot >= lowest) & (slot < self.size)
        slot = jnp.where(live, slot, jnp.int32(slots))

        new = draft.cache.stored(new_keys, new_values)
        stacks = [_laid(stack, rows, slot) for stack, rows in zip(draft.cache.stacks, new, strict=True)]
        held = jnp.broadcast_to(position[None, :, None, :], (*draft.positions.shape[:3], most))
        positions = _laid(draft.positions, held, slot)

        due = self.refresh_due(draft.selected, after) & (after > before)
        kept = DraftCache(FullCache(*stacks), positions, draft.selected)
        return when(due.any(), lambda d: self.select(d, full, after, due, query, config), kept)

    def refresh_due(self, selected: jax.Array, committed: jax.Array) -> jax.Array:
        """bool [batch]: whether `committed` tokens no longer fit beside what was selected, or the interval is over."""
        most = self.size - self.sinks
        if self.refresh_interval is not None:
            most = min(most, self.refresh_interval - 1)
        first = (selected == 0) & (committed > self.size)
        return first | ((selected > 0) & (committed - selected > most))

    def rebuild(
        self,
        draft: DraftCache,
        full: FullCache,
        committed: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> DraftCache:
        """The draft cache of a text of any length at once: after prefill, or after decoding that did not keep it."""
        copied = self._copy_prefix(draft, full, committed)
        due = committed > self.size
        return when(due.any(), lambda d: self.select(d, full, committed, due, query, config), copied)

    def select(
        self,
        draft: DraftCache,
        full: FullCache,
        committed: jax.Array,
        rows: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> DraftCache:
        """Fills the rows bool [batch] with the sinks and the best-scoring positions in descending score.

        A layer with a sliding window offers only positions inside it.
        """
        count = self.size - self.sinks
        stacks, positions = list(draft.cache.stacks), draft.positions
        batch, kv_heads = positions.shape[1], positions.shape[2]
        sinks = jnp.broadcast_to(jnp.arange(self.sinks, dtype=jnp.int32), (batch, kv_heads, self.sinks))
        keep = rows[:, None, None]
        row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
        head = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
        for layer in range(config.num_layers):
            window = config.sliding_windows[layer]
            begins = jnp.full_like(committed, self.sinks)
            if window is not None:
                begins = jnp.maximum(begins, committed - window + 1)
            best = over_heads(
                top_positions,
                result=1,
                query=query[layer],
                keys=full.keys,
                layer=layer,
                begins=begins,
                ends=committed,
                count=count,
            )
            # Or all layers' rows are gathered first, and lie beside the draft cache, as large as it.
            best, stacks = lax.optimization_barrier((best, stacks))
            chosen = jnp.concatenate([sinks, best], axis=-1)
            source = jnp.maximum(chosen, 0)
            taken = draft.cache.stored(full.keys[layer, row, head, source], full.values[layer, row, head, source])
            for index, rows_taken in enumerate(taken):
                stack, here = stacks[index], keep if rows_taken.ndim == 3 else keep[..., None]
                rows_taken = jnp.where(here, rows_taken, stack[layer, :, :, : self.size])
                at = (layer, *[0] * (stack.ndim - 1))
                stacks[index] = lax.dynamic_update_slice(stack, rows_taken[None], at)
            held = jnp.where(chosen < 0, jnp.int32(FAR_AWAY), chosen)
            held = jnp.where(keep, held, positions[layer, :, :, : self.size])
            positions = lax.dynamic_update_slice(positions, held[None], (layer, 0, 0, 0))
        return DraftCache(FullCache(*stacks), positions, jnp.where(rows, committed, draft.selected))

    def _copy_prefix(self, draft: DraftCache, full: FullCache, committed: jax.Array) -> DraftCache:
        """Slots 0.. hold positions 0..; what lies past the committed length is scratch in both caches."""
        slots = min(self.size, full.capacity)
        first = draft.cache.stored(full.keys[:, :, :, :slots], full.values[:, :, :, :slots])
        stacks = [
            lax.dynamic_update_slice(stack, rows, (0,) * stack.ndim)
            for stack, rows in zip(draft.cache.stacks, first, strict=True)
        ]
        index = jnp.arange(draft.positions.shape[3], dtype=jnp.int32)
        held = jnp.where(index[None, :] < committed[:, None], index[None, :], jnp.int32(FAR_AWAY))
        positions = jnp.broadcast_to(held[None, :, None, :], draft.positions.shape)
        return DraftCache(FullCache(*stacks), positions, jnp.zeros_like(draft.selected))


def _laid(stack: jax.Array, rows: jax.Array, slot: jax.Array) -> jax.Array:
    """The stack [layers, batch, kv_heads, slots, ...] with rows [layers, batch, kv_heads, most, ...] in the slots
    int32 [batch, most], which lie side by side, in any order; one past the last for a row that is dropped.

    The slots around are rewritten as they are: a scatter would make TPUs lay out the whole stack anew.
    """
    most, slots, zero = slot.shape[1], stack.shape[3], jnp.int32(0)
    starts = jnp.minimum(jnp.min(slot, axis=1), slots - most)
    here = starts[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
    meant = here[:, :, None] == slot[:, None, :]  # [batch, slot, row]
    trailing = [None] * (stack.ndim - 4)
    source = jnp.argmax(meant, axis=2).astype(jnp.int32)[(None, slice(None), None, slice(None), *trailing)]
    taken = jnp.any(meant, axis=2)[(None, slice(None), None, slice(None), *trailing)]
    rows = jnp.take_along_axis(rows, source, axis=3)
    for row in range(slot.shape[0]):
        at = (zero, jnp.int32(row), zero, starts[row], *[zero] * len(trailing))
        shape = (stack.shape[0], 1, stack.shape[2], most, *stack.shape[4:])
        old = lax.dynamic_slice(stack, at, shape)
        stack = lax.dynamic_update_slice(stack, jnp.where(taken[:, row : row + 1], rows[:, row : row + 1], old), at)
    return stack


def _windowed(config: ModelConfig) -> bool:
    return any(window is not None for window in config.sliding_windows)
