"""The drafter that proposes the most frequent continuations of the root, from the n-gram table (mode `ngram`)."""

from __future__ import annotations

from dataclasses import dataclass

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate import ngram, ngram_fill
from tokenswift_jax.speculate.drafted_tree import drafted_tree
from tokenswift_jax.speculate.drafter import (
    BaseDrafter,
    CommittedText,
    DrafterState,
    DraftWeights,
    Outcome,
    Roots,
    StatePart,
    StateSizes,
)
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.tree import Tree


@dataclass(frozen=True)
class NgramTablePart:
    """An n-gram table of the text.

    Attributes:
      slots: the most continuations per first token.
    """

    slots: int
    rebuilt = False
    takes_predictions = True

    def empty(self, sizes: StateSizes, batch: int) -> NgramTable:
        """A table without n-grams."""
        return ngram.empty(batch, sizes.capacity, self.slots)

    def catch_up(self, own: NgramTable, text: CommittedText) -> NgramTable:
        """Inserts the 4-grams that the table has not processed."""
        return ngram_fill.catch_up(own, text.tokens, text.ngrams_end)


@dataclass(frozen=True)
class NgramDrafter(BaseDrafter):
    """Proposes chains of tokens that followed the root before.

    Attributes:
      slots: continuations that the n-gram table keeps per first token.
    """

    slots: int
    weights = DraftWeights.NONE

    @property
    def parts(self) -> tuple[StatePart, ...]:
        """The n-gram table."""
        return (NgramTablePart(self.slots),)

    @property
    def text_alone(self) -> bool:
        """True: an n-gram table has nothing else."""
        return True

    @property
    def teacher_forced(self) -> NgramDrafter:
        """Itself: it reads no hidden state."""
        return self

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree of the root's chains."""
        (table,) = own
        return drafted_tree(roots.tree, roots.token, [], table), own, roots.cache

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Inserts the n-grams of the newly committed positions."""
        return (ngram.insert(own[0], outcome.text.tokens, outcome.text.ngrams_end, outcome.most),)
