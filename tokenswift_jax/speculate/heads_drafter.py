"""Drafters that ask the draft heads: on a hidden state of the target, or after a forward over the draft cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.candidates import guessed_levels, head_levels
from tokenswift_jax.speculate.draft_cache_part import CachedDrafter
from tokenswift_jax.speculate.drafter import DrafterState, DraftWeights, Outcome, Roots, propose_levels
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import TreeDepth


@dataclass(frozen=True)
class HeadsDrafter:
    """The heads read `Roots.hidden` (schedule `fused`, mode `medusa`).

    Attributes:
      backbone: whether `Roots.hidden` is the output of the root's own row, whose backbone logits then guess depth 1;
        else it is the output of the row that drew the root, and head 0 guesses depth 1.
    """

    backbone: bool = False
    parts = ()
    weights = DraftWeights.HEADS

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The heads' candidates."""
        if roots.guesses is not None:
            return guessed_levels(roots.tree, roots.guesses, roots.ranking), own, roots.cache
        nodes = head_levels(model, roots.tree, roots.hidden, roots.token, roots.ranking, backbone=self.backbone)
        return nodes, own, roots.cache

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree of the candidates."""
        return propose_levels(self, model, roots, own)

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Remembers nothing."""
        return own


@dataclass(frozen=True)
class CachedHeadsDrafter(CachedDrafter):
    """The root runs over a draft cache, then backbone and heads read its hidden state (schedule `partial`)."""

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The candidates of backbone and heads."""
        (draft,) = own
        token = roots.token
        rows, draft, full = self.part.forward(model, roots, draft, roots.cache, token, jnp.zeros_like(token))
        nodes = head_levels(model, roots.tree, rows.hidden[:, 0], token, roots.ranking, backbone=True)
        return nodes, (draft,), full
