"""The draft cache as copied positions: sinks, the best-scoring positions and the newest ones (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.in_place import update_if
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache, empty_cache, round_up, write_chosen_rows
from tokenswift_jax.kv.draft_cache import reaches
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.rules import placed, split_as

FAR_AWAY = -(2**30)  # the position of an empty slot: outside every sliding window


@pytree
class DraftCache:
    """K/V chosen per layer and KV head.

    Attributes:
      cache: [layers, batch, kv_heads, size + scratch (rounded up), head_dim]. While a text fits, slot i stores position
        i. Later the slots store the sinks, then the selected positions in descending score; newer positions replace
        the selected ones from the end.
      positions: int32 [layers, batch, kv_heads, slots], the position that each slot stores.
      selected: int32 [batch], committed length at the latest selection, 0 before the first.
    """

    cache: FullCache
    positions: jax.Array = axes("layers", "batch", "kv_heads", "slots")
    selected: jax.Array = axes("batch")


@dataclass(frozen=True)
class DraftCacheShape:
    """Static sizes, in slots, of a draft cache that copies single positions; implements `draft_cache.DraftCachePolicy`.

    Attributes:
      size: slots that store positions of the text.
      sinks: leading slots that always store positions 0 .. sinks-1.
      scratch: slots past `size` for the root and a drafted chain.
      refresh_interval: select again after this many committed tokens; None: when no replaceable slot is left.
      int8: whether K/V are in int8; else they are in the full cache's form.
    """

    size: int
    sinks: int
    scratch: int
    refresh_interval: int | None
    int8: bool = False

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype, cache_dtype: str | None = None) -> DraftCache:
        """An empty draft cache for a model of `dtype`; `cache_dtype` is the number format of its full cache."""
        slots = round_up(self.size + self.scratch)
        cache = empty_cache(config, batch, slots, dtype, "int8" if self.int8 else cache_dtype)
        positions = jnp.full((config.num_layers, batch, config.num_kv_heads, slots), FAR_AWAY, jnp.int32)
        return DraftCache(cache, positions, jnp.zeros((batch,), jnp.int32))

    def slots_in_use(self, committed: jax.Array) -> jax.Array:
        """int32 [batch]: how many leading slots store positions at `committed` tokens."""
        return jnp.minimum(committed, self.size)

    def view(
        self,
        draft: DraftCache,
        full: FullCache,
        token: jax.Array,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[RowBatch, FullCache]:
        """The row that follows `depth` drafted rows, and the draft cache."""
        itself = TreeMask(jnp.ones((token.shape[0], 1, 1), bool))
        in_use, slot_positions = self.slots_in_use(committed) + depth, draft.positions if _windowed(config) else None
        return RowBatch(token[:, None], (committed + depth)[:, None], in_use, itself, slot_positions), draft.cache

    def after_write(
        self,
        draft: DraftCache,
        full: FullCache,
        cache: FullCache,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[DraftCache, FullCache]:
        """Puts the view's cache, which contains the row at `depth`, back into the draft cache."""
        positions = draft.positions
        if _windowed(config):
            # A sliding window compares positions: later rows of the drafted chain need this row's to see it.
            slots = jnp.arange(positions.shape[3], dtype=jnp.int32)
            here = slots[None, :] == (self.slots_in_use(committed) + depth)[:, None]
            positions = jnp.where(here[None, :, None, :], (committed + depth)[None, :, None, None], positions)
        return replace(draft, cache=cache, positions=positions), full

    def advance(
        self,
        draft: DraftCache,
        full: FullCache,
        new: StoredKV,
        before: jax.Array,
        after: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> DraftCache:
        """Adds the newly committed positions before .. after-1, and selects again if that is due.

        Args:
          draft: the draft cache at `before` committed tokens.
          full: the full cache, which contains the new positions.
          new: K/V of the positions from `before` on, at least after - before rows.
          before, after: int32 [batch], committed lengths.
          query: [layers, batch, query_heads, head_dim], the root's query in the pass that committed them.
          config: static.
        """
        most = new.keys.shape[3]
        position = before[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
        fits = position < self.size
        newest_first = self.size - 1 - (position - draft.selected[:, None])
        slot = jnp.where((draft.selected[:, None] == 0) & fits, position, newest_first)
        slots = draft.positions.shape[3]
        lowest = jnp.where(draft.selected[:, None] > 0, jnp.int32(self.sinks), jnp.int32(0))
        live = (position < after[:, None]) & (slot >= lowest) & (slot < self.size)
        slot = jnp.where(live, slot, jnp.int32(slots))

        slot_positions = jnp.broadcast_to(position[None, :, None, :], (*draft.positions.shape[:3], most))
        written = (draft.cache.stacks, draft.positions), (draft.cache.converted(new), slot_positions)
        stacks, positions = _written(*written, slot)

        due = self.refresh_due(draft.selected, after) & (after > before)
        kept = DraftCache(draft.cache.with_stacks(stacks), positions, draft.selected)
        return update_if(due.any(), lambda d: self.select(d, full, after, due, query, config), kept)

    def refresh_due(self, selected: jax.Array, committed: jax.Array) -> jax.Array:
        """bool [batch]: whether `committed` tokens no longer fit beside the selection, or the interval is over."""
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
        """Builds the draft cache of a text of any length: after prefill, or after a plan that did not update it."""
        copied = self._copy_prefix(draft, full, committed)
        due = committed > self.size
        return update_if(due.any(), lambda d: self.select(d, full, committed, due, query, config), copied)

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

        A layer with a sliding window considers only positions inside the window.
        """
        count = self.size - self.sinks
        stacks, positions = draft.cache.stacks, draft.positions
        batch, kv_heads = positions.shape[1], positions.shape[2]
        sinks = jnp.broadcast_to(jnp.arange(self.sinks, dtype=jnp.int32), (batch, kv_heads, self.sinks))
        sinks = split_as(sinks, "batch", "kv_heads", "slots")
        keep = rows[:, None, None]
        reach = reaches(config)

        def one(layer: jax.Array, state: Any) -> Any:
            stacks, positions = state
            begins = jnp.maximum(jnp.int32(self.sinks), committed - reach[layer] + 1)
            chosen = jnp.concatenate(
                [sinks, full.top_positions(layer, query[layer], begins, committed, count)], axis=-1
            )
            taken = draft.cache.converted(full.gather(layer, jnp.maximum(chosen, 0)))

            def filled(stack: jax.Array, rows_taken: jax.Array) -> jax.Array:
                here = keep if stack.ndim == 4 else keep[..., None]
                rows_taken = jnp.where(here, rows_taken[0], stack[layer, :, :, : self.size])
                return _put(stack, rows_taken, layer)

            stacks = jax.tree.map(filled, stacks, taken)
            slot_positions = jnp.where(chosen < 0, jnp.int32(FAR_AWAY), chosen)
            slot_positions = jnp.where(keep, slot_positions, positions[layer, :, :, : self.size])
            return stacks, _put(positions, slot_positions, layer)

        stacks, positions = lax.fori_loop(jnp.int32(0), jnp.int32(reach.shape[0]), one, (stacks, positions))
        return DraftCache(draft.cache.with_stacks(stacks), positions, jnp.where(rows, committed, draft.selected))

    def _copy_prefix(self, draft: DraftCache, full: FullCache, committed: jax.Array) -> DraftCache:
        """Slots 0.. hold positions 0..; what lies past the committed length is scratch in both caches."""
        first = draft.cache.converted(full.in_order(min(self.size, full.capacity)))
        stacks = jax.tree.map(
            lambda stack, rows: lax.dynamic_update_slice(stack, rows, (0,) * stack.ndim), draft.cache.stacks, first
        )
        index = jnp.arange(draft.positions.shape[3], dtype=jnp.int32)
        slot_positions = jnp.where(index[None, :] < committed[:, None], index[None, :], jnp.int32(FAR_AWAY))
        positions = jnp.broadcast_to(slot_positions[None, :, None, :], draft.positions.shape)
        return placed(DraftCache(draft.cache.with_stacks(stacks), positions, jnp.zeros_like(draft.selected)))


def _written(stacks: Any, rows: Any, slot: jax.Array) -> Any:
    """Writes rows [layers, batch, kv_heads, most, ...] into stacks [layers, batch, kv_heads, slots, ...].

    `slot` is int32 [batch, most]: adjacent slots in any order, and the number of slots for a row to drop.
    """
    most, slots = slot.shape[1], jax.tree.leaves(stacks)[0].shape[3]
    starts = jnp.minimum(jnp.min(slot, axis=1), slots - most)
    here = starts[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
    meant = here[:, :, None] == slot[:, None, :]  # [batch, slot, row]
    source = jnp.argmax(meant, axis=2).astype(jnp.int32)
    return write_chosen_rows(stacks, rows, 0, starts, source, jnp.any(meant, axis=2))


def _put(stack: jax.Array, rows: jax.Array, layer: jax.Array) -> jax.Array:
    """Writes a layer's first slots."""
    return lax.dynamic_update_slice(stack, rows[None], (layer, *[jnp.int32(0)] * (stack.ndim - 1)))


def _windowed(config: ModelConfig) -> bool:
    return any(window is not None for window in config.sliding_windows)
