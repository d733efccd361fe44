"""The drafter that merges a model's candidates with n-gram chains (mode `tokenswift`, paper section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate import ngram, ngram_calibration
from tokenswift_jax.speculate.drafted_tree import drafted_tree
from tokenswift_jax.speculate.drafter import (
    CommittedText,
    DrafterState,
    DraftWeights,
    LevelDrafter,
    Outcome,
    Prepared,
    Roots,
    StatePart,
    StateSizes,
)
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.tree import Tree


@pytree
class Calibration:
    """The record of how often n-grams were right.

    Attributes:
      record: float32 [batch, 2], the sums that `ngram_calibration` keeps.
    """

    record: jax.Array = axes("batch", "sums")


@dataclass(frozen=True)
class CalibrationPart:
    """The calibration of the n-grams that compete with candidates of a model."""

    rebuilt = False
    takes_predictions = False

    def empty(self, sizes: StateSizes, batch: int) -> Calibration:
        """A record of no observations."""
        return Calibration(ngram_calibration.unobserved(batch))

    def catch_up(self, own: Calibration, text: CommittedText) -> Calibration:
        """Leaves the record: only iterations that draft chains observe anything."""
        return own


@dataclass(frozen=True)
class MergedDrafter:
    """Proposes the candidates of a model and the chains of an n-gram table in one tree.

    Attributes:
      candidates: proposes the candidates.
      ngrams: owns the n-gram table.
    """

    candidates: LevelDrafter
    ngrams: NgramDrafter

    @property
    def parts(self) -> tuple[StatePart, ...]:
        """The parts of both drafters, then the calibration."""
        return (*self.candidates.parts, *self.ngrams.parts, CalibrationPart())

    @property
    def weights(self) -> DraftWeights:
        """The weights that the candidates need."""
        return self.candidates.weights

    @property
    def text_alone(self) -> bool:
        """Whether the candidates come from the text too."""
        return self.candidates.text_alone

    @property
    def heads_depth(self) -> int | None:
        """That of the candidates."""
        return self.candidates.heads_depth

    @property
    def teacher_forced(self) -> MergedDrafter | None:
        """The same merge with the candidates' own."""
        candidates = self.candidates.teacher_forced
        return None if candidates is None else replace(self, candidates=candidates)

    def prepare(self, model: Decoder, hidden: jax.Array, heads: int) -> Prepared:
        """The arrays of the candidates."""
        return self.candidates.prepare(model, hidden, heads)

    def score(self, model: Decoder, hidden: jax.Array, heads: int) -> tuple[jax.Array, Prepared]:
        """The target's logits and the arrays of the candidates."""
        return self.candidates.score(model, hidden, heads)

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The merged tree. Chains continue the root or, if the tree says so, each candidate of depth 1."""
        *theirs, table, calibration = own
        levels, theirs, cache = self.candidates.levels(model, roots, tuple(theirs))
        scale = ngram_calibration.acceptance_scale(calibration.record)
        tree = drafted_tree(roots.tree, roots.token, levels, table, scale)
        return tree, (*theirs, table, calibration), cache

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """Moves both drafters on, and records whether an n-gram was right."""
        *theirs, table, calibration = own
        theirs = self.candidates.observe(tuple(theirs), outcome)
        text, spec = outcome.text, outcome.spec
        key = ngram_calibration.judged_key(spec, outcome.tree, outcome.acceptance)
        table, best = ngram.updated(table, text.tokens, text.ngrams_end, outcome.most, key, spec.ngram_k)
        assert best is not None
        moved = text.length > outcome.before
        record = ngram_calibration.observe(calibration.record, spec, best, outcome.tree, outcome.acceptance, moved)
        return (*theirs, table, Calibration(record))
