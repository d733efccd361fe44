"""Draft heads' proposals: hidden states to the levels of a tree, ranked with the noise that the target will use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.parallel.vocabulary import of_ids
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.draw import top_candidates
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.params import SequenceParams, subset
from tokenswift_jax.sample.processors import process
from tokenswift_jax.speculate.tree_expand import TreeDepth, next_level, select_frontier, shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec


@dataclass(frozen=True)
class DraftSampler:
    """Ranks the draft candidates of a batch of roots.

    Attributes:
      next_position: int32 [batch], n + 1: the position after the root's, which depth 1 guesses.
      last_positions: int32 [batch, vocab], `penalty.last_positions` of that text.
      noise: float32 [batch, depth or more, vocab] of positions n+1 .., None when greedy.
      settings: the settings of the batch (`keys` is not read).
      features: the sampling features that the step contains, static.
      drafted: the draft vocabulary, to which `vocab` refers then; None for the whole vocabulary.
    """

    next_position: jax.Array
    last_positions: jax.Array
    noise: jax.Array | None
    settings: SequenceParams
    features: SamplingFeatures
    drafted: DraftVocab | None = None

    def over(self, drafted: DraftVocab | None) -> DraftSampler:
        """The same sampler for logits over a draft vocabulary; `drafted` None changes nothing."""
        if drafted is None:
            return self
        ids, settings = jnp.asarray(drafted.ids), self.settings
        return replace(
            self,
            last_positions=of_ids(self.last_positions, ids),
            noise=None if self.noise is None else of_ids(self.noise, ids),
            settings=replace(settings, suppressed=subset(settings.suppressed, ids), eos=subset(settings.eos, ids)),
            drafted=drafted,
        )

    def below(self, depth: int) -> DraftSampler:
        """The sampler whose noise begins `depth` positions further."""
        return self if self.noise is None else replace(self, noise=self.noise[:, depth:])

    def best(
        self, logits: jax.Array, above: Sequence[jax.Array], depths: jax.Array, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """The `count` best candidates of each row of logits.

        Returns tokens int32 and draft log-probabilities float32, [batch, rows, count] each.

        logits is [batch, rows, vocab]; row i guesses the token `depths[i]` (int32 [1 or rows]) places below the depth-1
        guess. The penalty applies to those tokens of the text up to the root and of `above` that are in the penalty
        window. `above`, int32 [batch, rows] each, is the drafted path down to the guess; empty if the path is unknown.
        Tokens, also those of `above`, are ids of the whole vocabulary.
        """
        rows = logits.shape[1] if above else 1
        empty = jnp.zeros((*self.next_position.shape, rows, 0), jnp.int32)
        path = [empty, *(self._place(token)[..., None] for token in above)]
        drafted = jnp.full((*self.next_position.shape, rows), len(above), jnp.int32)
        penalised = penalty.row_penalised(
            self.last_positions,
            self.next_position,
            jnp.concatenate(path, axis=-1),
            drafted,
            self.settings.penalty_window,
        )
        scores = process(
            logits,
            penalised=penalised,
            generated=(self.next_position - self.settings.prompt_length)[:, None] + depths[None, :],
            settings=self.settings,
            features=self.features,
        )
        noise = None
        if self.noise is not None:
            first = len(above)
            noise = self.noise[:, first : first + depths.shape[0]]
        tokens, log_probs = top_candidates(scores, noise, count)
        return (tokens if self.drafted is None else jnp.asarray(self.drafted.ids)[tokens]), log_probs

    def _place(self, tokens: jax.Array) -> jax.Array:
        """The index of tokens in the draft vocabulary; its size, which no index equals, for tokens outside it."""
        if self.drafted is None:
            return tokens
        place = jnp.searchsorted(jnp.asarray(self.drafted.ids), tokens).astype(jnp.int32)
        found = jnp.asarray(self.drafted.ids).at[place].get(mode="clip") == tokens
        return jnp.where(found, place, jnp.int32(len(self.drafted)))


def head_levels(
    model: Decoder, shape: TreeSpec, hidden: jax.Array, root: jax.Array, ranking: DraftSampler, *, backbone: bool
) -> list[TreeDepth]:
    """The draft heads' nodes below a batch of roots, one level for each depth of `shape.widths`.

    The candidates of a depth have the highest processed logits plus noise at the position that they guess. The target's
    draw adds the same noise, so that sampled drafts agree with sampled draws (Daliri, Musco, Suresh 2024).

    Args:
      model: a decoder with draft heads; sequential ones iff `shape.per_parent`.
      shape: the tree's static shape; this function does not make its n-gram chains.
      hidden: [batch, hidden_size], the last layer's output before the final norm, of the row that drew the root
        (`fused`) or of the root's own row (`partial`).
      root: int32 [batch].
      ranking: ranks the candidates.
      backbone: static; whether the backbone's own logits of `hidden` guess depth 1 (`partial`); else head 0 does.
    """
    if shape.per_parent:
        return _sequential(model, shape, hidden, root, ranking, backbone)
    assert model.draft_heads is not None
    normed = model.draft_heads(model.heads_input(hidden), len(shape.widths) - backbone)
    if not backbone:
        return guessed_levels(shape, model.score_drafts(normed), ranking.over(model.config.draft_vocab))
    depths = jnp.arange(len(shape.widths), dtype=jnp.int32)
    if model.config.draft_vocab is None:
        normed = jnp.concatenate([model.norm(hidden)[:, None], normed], axis=1)
        return _shared(shape, *ranking.best(model.project(normed), (), depths, max(shape.widths)))
    first = ranking.best(model.project(model.norm(hidden)[:, None]), (), depths[:1], shape.widths[0])
    candidates = [(first[0][:, 0], first[1][:, 0])]
    if deeper := shape.widths[1:]:
        heads = ranking.below(1).over(model.config.draft_vocab)
        rest = heads.best(model.score_drafts(normed), (), depths[1:], max(deeper))
        candidates += [(rest[0][:, i, :width], rest[1][:, i, :width]) for i, width in enumerate(deeper)]
    return shared_levels(shape, candidates)


def guessed_levels(shape: TreeSpec, guesses: jax.Array, ranking: DraftSampler) -> list[TreeDepth]:
    """The nodes below a batch of roots, from the logits [batch, depths, vocab] of the heads that guess them; `ranking`
    is over the same vocabulary."""
    depths = jnp.arange(len(shape.widths), dtype=jnp.int32)
    return _shared(shape, *ranking.best(guesses, (), depths, max(shape.widths)))


def _shared(shape: TreeSpec, tokens: jax.Array, log_probs: jax.Array) -> list[TreeDepth]:
    """The levels of candidates [batch, depths, widest]."""
    return shared_levels(shape, [(tokens[:, i, :w], log_probs[:, i, :w]) for i, w in enumerate(shape.widths)])


def _sequential(
    model: Decoder, shape: TreeSpec, hidden: jax.Array, root: jax.Array, ranking: DraftSampler, backbone: bool
) -> list[TreeDepth]:
    """The nodes of sequential heads, one level per depth.

    Each expanded node has its own hidden state and path; a head reads both and guesses below that node.
    """
    assert model.draft_heads is not None
    levels: list[TreeDepth] = []
    parents = jnp.zeros((root.shape[0], 1), jnp.int32)
    states, token = hidden[:, None], root[:, None]
    above: list[jax.Array] = []
    heads = ranking.over(model.config.draft_vocab)
    for depth, width in enumerate(shape.widths):
        if levels:
            previous = shape.widths[depth - 1]
            parents = select_frontier(shape, levels)
            token = jnp.take_along_axis(levels[-1].tokens, parents, axis=1, mode="clip")
            # A node's index in its level, divided by the width, is the index of the row that proposed it.
            proposer = parents // previous
            states = jnp.take_along_axis(states, proposer[..., None], axis=1, mode="clip")
            above = [jnp.take_along_axis(tokens, proposer, axis=1, mode="clip") for tokens in above] + [token]
        at = jnp.full((1,), depth, jnp.int32)
        if backbone and depth == 0:
            tokens, log_probs = ranking.best(model.project(model.norm(states)), above, at, width)
        else:
            states, output = model.draft_heads.step(depth - backbone, states, model.embed(token))
            tokens, log_probs = heads.best(model.score_drafts(output), above, at, width)
        levels.append(next_level(shape, levels, parents, tokens, log_probs))
    return levels
