"""The interface of drafters: the sources of the drafts that one iteration verifies.

A drafter is static and hashable, so a plan names one and each has executables of its own. Its state is a tuple of
pytrees, one for each of its parts. Plans whose drafters name equal parts share these arrays: an engine keeps one n-gram
table for all its plans, and switches between plans without losing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.candidates import DraftSampler
from tokenswift_jax.speculate.drafted_tree import drafted_tree
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import TreeDepth
from tokenswift_jax.speculate.tree_spec import TreeSpec

DrafterState = tuple[Any, ...]  # one pytree for each of `Drafter.parts`
# Dataclasses whose fields name their axes, from one iteration of a chunk to the next; () for most drafters.
Prepared = tuple[Any, ...]


class DraftWeights(IntEnum):
    """The weights that a drafter reads; each value includes the ones before it."""

    NONE = 0
    HEADS = 1  # draft heads and LM head
    LAYERS = 2  # the decoder's layers too


@dataclass(frozen=True)
class StateSizes:
    """The sizes of the arrays in a drafter's state.

    Attributes:
      config: the decoder's configuration.
      capacity: positions per row of the text.
      dtype: the model's dtype.
      cache_dtype: the number format of the full cache, as for `kv.dense.empty_cache`.
    """

    config: ModelConfig
    capacity: int
    dtype: jnp.dtype
    cache_dtype: str | None = None


@dataclass(frozen=True)
class CommittedText:
    """The committed positions of a batch.

    Attributes:
      config: the decoder's configuration.
      tokens: int32 [batch, text_capacity], the text by position.
      length: int32 [batch], committed positions n.
      ngram_lag: int32 [batch], the newest positions, which no n-gram of the table may contain.
      cache: the full cache, K/V of positions 0 .. n-1.
      query: [layers, batch, query_heads, head_dim], the root's rotated queries in the pass that committed them.
    """

    config: ModelConfig
    tokens: jax.Array
    length: jax.Array
    ngram_lag: jax.Array
    cache: FullCache
    query: jax.Array

    @property
    def ngrams_end(self) -> jax.Array:
        """int32 [batch]: the n-gram table may contain the 4-grams that end before this position; may be negative."""
        return self.length - self.ngram_lag


@dataclass(frozen=True)
class Roots:
    """The roots of a batch, below which a drafter proposes nodes.

    Attributes:
      config: the decoder's configuration.
      tree: the sizes of the tree.
      token: int32 [batch], the newest emitted tokens.
      length: int32 [batch], committed positions n, the roots' positions.
      hidden: [batch, hidden_size], the last layer's output (before the final norm) that the draft heads read: of the
        tree rows that drew the roots.
      cache: the full cache.
      ranking: ranks candidates as the target will draw.
      prepared: the drafter's arrays for the rows that drew the roots (`Drafter.prepare`).
    """

    config: ModelConfig
    tree: TreeSpec
    token: jax.Array
    length: jax.Array
    hidden: jax.Array
    cache: FullCache
    ranking: DraftSampler
    prepared: Prepared


@dataclass(frozen=True)
class Outcome:
    """The outcome of an iteration, from which a drafter learns.

    Attributes:
      text: the text after the commit.
      before: int32 [batch], committed positions before it; a finished row commits none.
      new: K/V of the tree rows.
      spec: the sizes of the tree.
      tree: the verified tree.
      acceptance: its acceptance.
    """

    text: CommittedText
    before: jax.Array
    new: StoredKV
    spec: TreeSpec
    tree: Tree
    acceptance: Acceptance

    @property
    def most(self) -> int:
        """The most positions that one iteration can commit."""
        return self.spec.depth + 1


class StatePart(Protocol):
    """One part of a drafter's state; static and hashable. Equal parts of several drafters share their arrays."""

    @property
    def takes_predictions(self) -> bool:
        """Whether the part is an n-gram table, which predicted texts enter too (`predicted_text`)."""
        ...

    @property
    def rebuilt(self) -> bool:
        """Whether `catch_up` computes the part from the whole text again, at the cost of several decoding steps."""
        ...

    def empty(self, sizes: StateSizes, batch: int) -> Any:
        """The arrays, in dataclasses whose fields name their axes, of a batch without text."""
        ...

    def catch_up(self, own: Any, text: CommittedText) -> Any:
        """Brings the arrays up to date with the text: after prefill, and after iterations of other plans."""
        ...


class Drafter(Protocol):
    """A source of drafts."""

    @property
    def parts(self) -> tuple[StatePart, ...]:
        """The parts of the state; none if the drafter remembers nothing between iterations."""
        ...

    @property
    def weights(self) -> DraftWeights:
        """The weights of the model that `propose` reads."""
        ...

    @property
    def text_alone(self) -> bool:
        """Whether the drafts come from the text alone, so that the host can foresee them without the device."""
        ...

    @property
    def heads_depth(self) -> int | None:
        """The depth of the nodes that draft head 0 guesses; None if no draft heads guess.

        It is 1 where the heads read a verified row, the one that drew the root, and 2 where they read the root's own
        row and the backbone guesses depth 1.
        """
        ...

    @property
    def teacher_forced(self) -> Drafter | None:
        """The drafter that proposes the same where the hidden state of every position is known; None: there is none.

        It needs no draft cache, and reads the state of the root's own row if `heads_depth` is 2.
        """
        ...

    def prepare(self, model: Decoder, hidden: jax.Array, heads: int) -> Prepared:
        """The arrays [batch, ..] that `propose` reads of the rows that drew the roots, computed at the beginning of a
        chunk from those rows' hidden states [batch, hidden_size]; () with `heads` 0.

        heads is static, `Plan.heads_verified`.
        """
        ...

    def score(self, model: Decoder, hidden: jax.Array, heads: int) -> tuple[jax.Array, Prepared]:
        """The target's logits [batch, rows, vocab] of the verified rows' hidden states [batch, rows, hidden_size], and
        from the same pass over the LM head what `prepare` computes, for every row: [batch, rows, ..]."""
        ...

    def propose(self, model: Decoder, roots: Roots, own: DrafterState) -> tuple[Tree, DrafterState, FullCache]:
        """The tree to verify, the state, and the full cache: drafting may overwrite its scratch slots."""
        ...

    def observe(self, own: DrafterState, outcome: Outcome) -> DrafterState:
        """The state after the commit of an iteration."""
        ...


class BaseDrafter:
    """The common part of drafters that use no draft heads, and for which the verification prepares nothing."""

    @property
    def text_alone(self) -> bool:
        """False."""
        return False

    @property
    def heads_depth(self) -> int | None:
        """No draft heads."""
        return None

    def prepare(self, model: Decoder, hidden: jax.Array, heads: int) -> Prepared:
        """Nothing."""
        return ()

    def score(self, model: Decoder, hidden: jax.Array, heads: int) -> tuple[jax.Array, Prepared]:
        """The target's logits alone."""
        return model.logits(hidden), ()


class LevelDrafter(Drafter, Protocol):
    """A drafter whose nodes are levels of candidates (`TreeDepth`); `MergedDrafter` can add n-gram chains to them."""

    @property
    def teacher_forced(self) -> LevelDrafter | None:
        """As `Drafter.teacher_forced`."""
        ...

    def levels(
        self, model: Decoder, roots: Roots, own: DrafterState
    ) -> tuple[list[TreeDepth], DrafterState, FullCache]:
        """The nodes below the roots, one level for each depth of `roots.tree.widths`, and state and cache as `propose`
        returns them."""
        ...


def propose_levels(
    drafter: LevelDrafter, model: Decoder, roots: Roots, own: DrafterState
) -> tuple[Tree, DrafterState, FullCache]:
    """`Drafter.propose` with the tree of the levels alone."""
    levels, own, cache = drafter.levels(model, roots, own)
    return drafted_tree(roots.tree, roots.token, levels), own, cache
