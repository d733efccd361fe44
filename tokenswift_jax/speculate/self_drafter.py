"""Self-drafting: the target's layers draft a chain over the draft cache, one forward per token (mode `selfspec`).

TriForce and MagicDec draft in this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.draft_cache_part import CachedDrafter
from tokenswift_jax.speculate.drafter import DrafterState, Roots
from tokenswift_jax.speculate.tree_expand import TreeDepth, shared_levels


@dataclass(frozen=True)
class SelfDrafter(CachedDrafter):
    """Drafts one candidate per depth of the tree; the scratch of the draft cache has room for the chain."""

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The drafted chain."""
        (draft,), full = own, roots.cache
        token, above = roots.token, []
        candidates: list[tuple[jax.Array, jax.Array]] = []
        for index in range(roots.tree.depth):
            depth = jnp.full_like(token, index)
            rows, draft, full = self.part.forward(model, roots, draft, full, token, depth)
            at = jnp.full((1,), index, jnp.int32)
            tokens, log_probs = roots.ranking.best(model.logits(rows.hidden), above, at, 1)
            candidates.append((tokens[:, 0], log_probs[:, 0]))
            token = tokens[:, 0, 0]
            above.append(tokens[:, 0])
        return shared_levels(roots.tree, candidates), (draft,), full
