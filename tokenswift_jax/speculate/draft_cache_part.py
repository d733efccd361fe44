"""The draft cache as a part of a drafter's state, the forward that drafts over it, and the drafters' common base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_cache import DraftCachePolicy
from tokenswift_jax.kv.forward import Rows, forward_rows
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.drafter import (
    BaseDrafter,
    CommittedText,
    DrafterState,
    DraftWeights,
    LevelDrafter,
    Outcome,
    Roots,
    StatePart,
    StateSizes,
    propose_levels,
)
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import TreeDepth


@dataclass(frozen=True)
class DraftCachePart:
    """A draft cache.

    Attributes:
      kind: kind and sizes of the draft cache.
    """

    kind: DraftCachePolicy
    rebuilt = True
    takes_predictions = False

    def empty(self, sizes: StateSizes, batch: int) -> Any:
        """A draft cache without positions."""
        return self.kind.empty(sizes.config, batch, sizes.dtype, sizes.cache_dtype)

    def catch_up(self, own: Any, text: CommittedText) -> Any:
        """Selects positions of the text."""
        return self.kind.rebuild(own, text.cache, text.length, text.query, text.config)

    def advance(self, own: Any, outcome: Outcome) -> Any:
        """Adds the newly committed positions, and selects again if that is due."""
        text, new = outcome.text, outcome.new.along(outcome.acceptance.path)
        return self.kind.advance(own, text.cache, new, outcome.before, text.length, text.query, text.config)

    def forward(
        self, model: Decoder, roots: Roots, own: Any, full: FullCache, token: jax.Array, depth: jax.Array
    ) -> tuple[Rows, Any, FullCache]:
        """Runs one row over the draft cache: `token` int32 [batch] at position n + depth, after `depth` drafted rows.

        Returns the results of the row, the draft cache and the full cache.
        """
        row, cache = self.kind.view(own, full, token, roots.length, depth, roots.config)
        rows, cache = forward_rows(model, row, cache)
        own, full = self.kind.after_write(own, full, cache, roots.length, depth, roots.config)
        return rows, own, full


@dataclass(frozen=True)
class CachedDrafter(BaseDrafter):
    """A drafter whose state is a draft cache; subclasses give the levels (`LevelDrafter.levels`).

    Attributes:
      cache: kind and sizes of the draft cache.
    """

    cache: DraftCachePolicy
    weights = DraftWeights.LAYERS

    @property
    def parts(self) -> tuple[StatePart, ...]:
        """The draft cache."""
        return (self.part,)

    @property
    def part(self) -> DraftCachePart:
        """The draft cache as the only part of the state."""
        return DraftCachePart(self.cache)

    @property
    def teacher_forced(self) -> LevelDrafter | None:
        """There is none: the layers draft over the draft cache alone; a subclass may know one."""
        return None

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """As `LevelDrafter.levels`."""
        raise NotImplementedError

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree of the levels."""
        return propose_levels(self, model, roots, own)

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Moves the draft cache on."""
        return (self.part.advance(own[0], outcome),)
