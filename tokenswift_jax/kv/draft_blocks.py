"""The draft cache as a table of blocks of the full cache: drafting reads the blocks in place, without a copy."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.in_place import update_if
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_cache import reaches
from tokenswift_jax.kv.row_batch import RowBatch, TreeMaskOverBlocks
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.rules import split_as


@pytree
class BlockTable:
    """Blocks chosen per layer and KV head; block i covers slots i * block .. (i + 1) * block - 1 of the full cache.

    Attributes:
      chosen: int32 [layers, batch, kv_heads, table], the latest selection: the sinks' blocks, the newest block, then
        the best-scoring others in descending score; -1 fills the rest. Means nothing before the first selection.
      selected: int32 [batch], committed length at the latest selection, 0 before the first.
    """

    chosen: jax.Array = axes("layers", "batch", "kv_heads", "blocks")
    selected: jax.Array = axes("batch")


@dataclass(frozen=True)
class BlockTableShape:
    """Static sizes of a draft cache that names blocks; implements `draft_cache.DraftCachePolicy`.

    Drafting writes the K/V of drafted rows to the full cache past the committed length, where verification overwrites
    them. While a text and its drafts fit, the table names all their blocks. Later, blocks newer than the selection
    replace the lowest-scored ones, from the end, so that drafting always sees the newest tokens.

    Attributes:
      size: the most slots that a row reads; a multiple of `block`.
      sinks: drafting always sees the blocks of positions 0 .. sinks-1.
      scratch: rows of a drafted chain, the root included.
      refresh_interval: select again after this many committed tokens; None: when no replaceable entry is left.
      block: slots per block.
    """

    size: int
    sinks: int
    scratch: int
    refresh_interval: int | None
    block: int

    @property
    def entries(self) -> int:
        """Blocks that the table names."""
        return self.size // self.block

    @property
    def _fixed(self) -> int:
        """Entries for the sinks."""
        return -(-self.sinks // self.block)

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype, cache_dtype: str | None = None) -> BlockTable:
        """A table before its first selection."""
        dims = (config.num_layers, batch, config.num_kv_heads, self.entries)
        return BlockTable(jnp.full(dims, -1, jnp.int32), jnp.zeros((batch,), jnp.int32))

    def blocks(self, draft: BlockTable, committed: jax.Array) -> jax.Array:
        """int32 [layers, batch, kv_heads, table]: the blocks that drafting sees at `committed` tokens; -1 for none."""
        entry = jnp.arange(self.entries, dtype=jnp.int32)
        # The last entry takes the first block after the selection's newest block, the entry before it takes the second.
        newer = ((draft.selected - 1) // self.block + 1)[:, None] + entry[None, ::-1]
        arrived = newer <= self._newest(committed)[:, None]
        selected = jnp.where(arrived[None, :, None], newer[None, :, None], draft.chosen)
        return jnp.where((draft.selected > 0)[None, :, None, None], selected, entry[None, None, None])

    def view(
        self,
        draft: BlockTable,
        full: FullCache,
        token: jax.Array,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[RowBatch, FullCache]:
        """The row that follows `depth` drafted rows, and the full cache."""
        at, itself = committed + depth, jnp.ones((token.shape[0], 1, 1), bool)
        seen = TreeMaskOverBlocks(itself, self.blocks(draft, committed), self.block)
        return RowBatch(token[:, None], at[:, None], at, seen), full

    def after_write(
        self,
        draft: BlockTable,
        full: FullCache,
        cache: FullCache,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[BlockTable, FullCache]:
        """Returns the view's cache as the full cache; the table does not change."""
        return draft, cache

    def advance(
        self,
        draft: BlockTable,
        full: FullCache,
        new: StoredKV,
        before: jax.Array,
        after: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> BlockTable:
        """Selects again if that is due; new positions need no other work."""
        due = self.refresh_due(draft.selected, after) & (after > before)
        return update_if(due.any(), lambda d: self.select(d, full, after, due, query, config), draft)

    def refresh_due(self, selected: jax.Array, committed: jax.Array) -> jax.Array:
        """bool [batch]: whether the text and a drafted chain no longer fit, or the interval is over."""
        newest = self._newest(committed)
        most = self.entries - self._fixed - 1
        used_up = newest - (selected - 1) // self.block > most
        if self.refresh_interval is not None:
            used_up |= committed - selected >= self.refresh_interval
        return jnp.where(selected > 0, used_up, newest >= self.entries)

    def rebuild(
        self, draft: BlockTable, full: FullCache, committed: jax.Array, query: jax.Array, config: ModelConfig
    ) -> BlockTable:
        """Builds the table of a text of any length."""
        fresh = BlockTable(draft.chosen, jnp.zeros_like(draft.selected))
        due = self.refresh_due(fresh.selected, committed)
        return update_if(due.any(), lambda d: self.select(d, full, committed, due, query, config), fresh)

    def select(
        self,
        draft: BlockTable,
        full: FullCache,
        committed: jax.Array,
        rows: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> BlockTable:
        """Chooses blocks for the rows bool [batch]. A block's score is that of its best key; a layer with a sliding
        window considers only blocks that overlap the window."""
        fixed, newest = self._fixed, (committed - 1) // self.block
        _, batch, kv_heads, entries = draft.chosen.shape
        sinks = jnp.broadcast_to(jnp.arange(fixed, dtype=jnp.int32), (batch, kv_heads, fixed))
        sinks = split_as(sinks, "batch", "kv_heads")
        present = jnp.broadcast_to(newest[:, None, None], (batch, kv_heads, 1))
        present = split_as(present, "batch", "kv_heads")
        ends, count = newest * self.block, entries - fixed - 1

        def of_layer(layer: jax.Array, reach: jax.Array, query: jax.Array) -> jax.Array:
            begins = jnp.maximum(jnp.int32(fixed * self.block), committed - reach + 1)
            best = full.top_blocks(layer, query, begins, ends, count, self.block)
            return jnp.concatenate([sinks, present, best], axis=-1)

        layers = jnp.arange(query.shape[0], dtype=jnp.int32), reaches(config), query
        best = lax.map(lambda layer: of_layer(*layer), layers)
        chosen = jnp.where(rows[None, :, None, None], best, draft.chosen)
        return BlockTable(chosen, jnp.where(rows, committed, draft.selected))

    def _newest(self, committed: jax.Array) -> jax.Array:
        """int32 [batch]: the block of the newest slot that a drafted row reads."""
        return (committed + self.scratch - 2) // self.block
