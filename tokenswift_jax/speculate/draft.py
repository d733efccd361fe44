"""Drafting: builds the tree of an iteration from draft heads, n-grams or the backbone over the draft cache."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.forward import Rows, forward_rows
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate import ngram, ngram_calibration
from tokenswift_jax.speculate.candidates import DraftSampler, head_levels
from tokenswift_jax.speculate.tree import Tree, build
from tokenswift_jax.speculate.tree_expand import TreeDepth, shared_levels
from tokenswift_jax.step.state import DecodeState, Plan, StepInputs


def draft_tree(
    model: Decoder, state: DecodeState, inputs: StepInputs, plan: Plan, noise: jax.Array | None
) -> tuple[Tree, DecodeState]:
    """Returns the tree that this iteration verifies, and the state; drafting overwrites scratch slots.

    noise is float32 [batch, depth + 1, vocab] of positions n+1 .., None when greedy; a plan without `shared_noise`
    drafts as if noise were None.
    """
    assert plan.tree is not None
    root = _root(state)
    ranking = DraftSampler(
        length=state.length + 1,
        last_positions=state.last_positions,
        noise=noise if plan.shared_noise else None,
        settings=inputs.sequence,
        features=plan.features,
    )
    levels: list[TreeDepth] = []
    if plan.kind == "selfspec":
        levels, state = _drafted_chain(model, state, plan, root, ranking)
    elif plan.kind == "partial":
        rows, state = _draft_forward(model, state, plan, root, jnp.zeros_like(root))
        levels = head_levels(model, plan.tree, rows.hidden[:, 0], root, ranking, backbone=True)
    elif plan.kind == "fused":
        levels = head_levels(model, plan.tree, state.hidden, root, ranking, backbone=False)
    chains = factor = None
    if plan.tree.ngram_k:
        assert state.ngrams is not None
        first = root[:, None] if plan.tree.keyed_by_root else levels[0].tokens
        chains = ngram.lookup(state.ngrams, first, plan.tree.ngram_k)
    if plan.tree.calibrated:
        assert state.ngram_trust is not None
        factor = ngram_calibration.factor(state.ngram_trust)
    return build(plan.tree, root, levels, chains, factor), state


def _root(state: DecodeState) -> jax.Array:
    return jnp.take_along_axis(state.tokens, state.length[:, None], axis=1)[:, 0]


def _draft_forward(
    model: Decoder, state: DecodeState, plan: Plan, token: jax.Array, depth: jax.Array
) -> tuple[Rows, DecodeState]:
    """Runs one row over the draft cache: `token` int32 [batch] at position n + depth, after `depth` drafted rows."""
    assert state.draft is not None
    assert plan.draft is not None
    row, cache = plan.draft.view(state.draft, state.cache, token, state.length, depth, plan.config)
    rows, cache = forward_rows(model, row, cache)
    draft, full = plan.draft.written(state.draft, state.cache, cache, state.length, depth, plan.config)
    return rows, replace(state, draft=draft, cache=full)


def _drafted_chain(
    model: Decoder, state: DecodeState, plan: Plan, root: jax.Array, ranking: DraftSampler
) -> tuple[list[TreeDepth], DecodeState]:
    """Drafts a chain with the backbone over the draft cache, one forward per token (as TriForce and MagicDec do)."""
    assert plan.tree is not None
    token, above = root, []
    candidates: list[tuple[jax.Array, jax.Array]] = []
    for index in range(plan.tree.depth):
        rows, state = _draft_forward(model, state, plan, token, jnp.full_like(token, index))
        at = jnp.full((1,), index, jnp.int32)
        tokens, log_probs = ranking.best(model.logits(rows.hidden), above, at, 1)
        candidates.append((tokens[:, 0], log_probs[:, 0]))
        token = tokens[:, 0, 0]
        above.append(tokens[:, 0])
    return shared_levels(plan.tree, candidates), state
