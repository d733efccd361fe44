"""Drafters that ask the draft heads: on a hidden state of the target, or after a forward over the draft cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.candidates import guessed_levels, head_levels
from tokenswift_jax.speculate.draft_cache_part import CachedDrafter
from tokenswift_jax.speculate.drafter import (
    BaseDrafter,
    DrafterState,
    DraftWeights,
    Outcome,
    Prepared,
    Roots,
    propose_levels,
)
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import TreeDepth


@pytree
class Guesses:
    """The draft heads' logits after the rows that drew the roots.

    Attributes:
      logits: float32 or wider [batch, draft_heads, vocab]. A verification gives those of all its rows, [batch, rows,
        draft_heads, vocab]; the commit keeps one row of each text.
    """

    logits: jax.Array = axes("batch", "draft_heads", "vocab")


@dataclass(frozen=True)
class HeadsDrafter(BaseDrafter):
    """The heads read `Roots.hidden` (schedule `fused`, mode `medusa`).

    Attributes:
      backbone: whether `Roots.hidden` is the output of the root's own row, whose backbone logits then guess depth 1;
        else it is the output of the row that drew the root, and head 0 guesses depth 1.
    """

    backbone: bool = False
    parts = ()
    weights = DraftWeights.HEADS

    @property
    def heads_depth(self) -> int:
        """1, or 2 below the backbone's guess."""
        return 2 if self.backbone else 1

    @property
    def teacher_forced(self) -> HeadsDrafter:
        """Itself: it has no draft cache."""
        return self

    def prepare(self, model: Decoder, hidden: jax.Array, heads: int) -> Prepared:
        """The logits of the first `heads` heads."""
        if not heads:
            return ()
        assert model.draft_heads is not None
        return (Guesses(model.score_drafts(model.draft_heads(model.heads_input(hidden), heads))),)

    def score(self, model: Decoder, hidden: jax.Array, heads: int) -> tuple[jax.Array, Prepared]:
        """The target's logits, and with them those of the first `heads` heads."""
        if not heads:
            return super().score(model, hidden, heads)
        logits, guesses = model.logits_and_guesses(hidden, heads)
        return logits, (Guesses(guesses),)

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The heads' candidates."""
        if roots.prepared:
            (guesses,) = roots.prepared
            return guessed_levels(roots.tree, guesses.logits, roots.ranking), own, roots.cache
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

    @property
    def heads_depth(self) -> int:
        """2: the backbone guesses depth 1."""
        return 2

    @property
    def teacher_forced(self) -> HeadsDrafter:
        """The drafter that reads the root's hidden state over the full cache."""
        return HeadsDrafter(backbone=True)

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The candidates of backbone and heads."""
        (draft,) = own
        token = roots.token
        rows, draft, full = self.part.forward(model, roots, draft, roots.cache, token, jnp.zeros_like(token))
        nodes = head_levels(model, roots.tree, rows.hidden[:, 0], token, roots.ranking, backbone=True)
        return nodes, (draft,), full
