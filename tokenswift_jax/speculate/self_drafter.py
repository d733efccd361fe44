"""Self-drafting: the target's layers draft a chain over the draft cache, one forward per token (mode `selfspec`).

TriForce and MagicDec draft in this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_cache import DraftKind
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.draft_cache_part import DraftCachePart
from tokenswift_jax.speculate.drafter import DrafterState, DraftWeights, Outcome, Roots, StatePart, propose_levels
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import TreeDepth, shared_levels


@dataclass(frozen=True)
class SelfDrafter:
    """Drafts one candidate per depth of the tree.

    Attributes:
      cache: kind and sizes of the draft cache; its scratch has room for the chain.
    """

    cache: DraftKind
    weights = DraftWeights.LAYERS

    @property
    def parts(self) -> tuple[StatePart, ...]:
        """The draft cache."""
        return (self._part,)

    @property
    def _part(self) -> DraftCachePart:
        return DraftCachePart(self.cache)

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The drafted chain."""
        (draft,), full = own, roots.cache
        token, above = roots.token, []
        candidates: list[tuple[jax.Array, jax.Array]] = []
        for index in range(roots.tree.depth):
            depth = jnp.full_like(token, index)
            rows, draft, full = self._part.forward(model, roots, draft, full, token, depth)
            at = jnp.full((1,), index, jnp.int32)
            tokens, log_probs = roots.ranking.best(model.logits(rows.hidden), above, at, 1)
            candidates.append((tokens[:, 0], log_probs[:, 0]))
            token = tokens[:, 0, 0]
            above.append(tokens[:, 0])
        return shared_levels(roots.tree, candidates), (draft,), full

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree of the candidates."""
        return propose_levels(self, model, roots, own)

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Moves the draft cache on."""
        return (self._part.advance(own[0], outcome),)
