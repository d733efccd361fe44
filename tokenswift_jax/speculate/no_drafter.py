"""The drafter of plain decoding, which proposes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.drafter import BaseDrafter, DrafterState, DraftWeights, Outcome, Roots
from tokenswift_jax.speculate.tree import Tree


@dataclass(frozen=True)
class NoDrafter(BaseDrafter):
    """Proposes the root alone."""

    parts = ()
    weights = DraftWeights.NONE

    @property
    def teacher_forced(self) -> NoDrafter:
        """Itself."""
        return self

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree that contains only its root."""
        root = roots.token[:, None]
        zeros = jnp.zeros_like(root)
        yes = jnp.ones_like(root, dtype=bool)
        return Tree(root, zeros, zeros, yes, ~yes, yes[:, :, None], zeros[:, 0]), own, roots.cache

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Remembers nothing."""
        return own
