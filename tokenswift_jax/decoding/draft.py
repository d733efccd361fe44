"""Drafting: candidates for each depth below the root, drawn with the noise the target will use."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tokenswift_jax.cache.draft import slots_in_use
from tokenswift_jax.decoding import ngram, penalty
from tokenswift_jax.decoding.forward import Rows, forward_rows
from tokenswift_jax.decoding.processors import process, top_candidates
from tokenswift_jax.decoding.state import DecodeState, Inputs, Plan
from tokenswift_jax.decoding.tree import Tree, build
from tokenswift_jax.models.decoder import Decoder

# Per depth: tokens int32 [batch, width] and log probabilities float32 [batch, width].
Candidates = list[tuple[jax.Array, jax.Array]]


def draft_tree(
    model: Decoder, state: DecodeState, inputs: Inputs, plan: Plan, noise: jax.Array | None
) -> tuple[Tree, DecodeState]:
    """The tree that this iteration verifies, and the state (the draft cache's scratch slots are overwritten).

    noise is float32 [batch, depth + 1, vocab] of positions n+1 .., None when greedy. Candidates of a depth are the
    best of the head's processed logits plus the noise at the position they guess: the target's draw adds the same
    noise, so that sampled drafts meet sampled draws (Daliri, Musco, Suresh 2024).
    """
    assert plan.tree is not None
    root = _root(state)
    if plan.kind == "selfspec":
        candidates, state = _drafted_chain(model, state, inputs, plan, noise)
    elif plan.kind == "partial":
        rows, state = _draft_forward(model, state, plan, root, jnp.zeros_like(root))
        hidden = rows.hidden[:, 0]
        heads = _heads(model, hidden, len(plan.tree.widths) - 1)
        normed = jnp.concatenate([model.norm(hidden)[:, None], heads], axis=1)
        candidates = _candidates(model.project(normed), state, inputs, plan, noise)
    elif plan.kind == "fused":
        candidates = _candidates(
            model.project(_heads(model, state.hidden, len(plan.tree.widths))), state, inputs, plan, noise
        )
    else:
        candidates = []
    chains = None
    if plan.tree.ngram_k:
        assert state.ngrams is not None
        first = root[:, None] if plan.tree.keyed_by_root else candidates[0][0]
        chains = ngram.lookup(state.ngrams, first, plan.tree.ngram_k)
    return build(plan.tree, root, candidates, chains), state


def _root(state: DecodeState) -> jax.Array:
    return jnp.take_along_axis(state.tokens, state.length[:, None], axis=1)[:, 0]


def _heads(model: Decoder, hidden: jax.Array, count: int) -> jax.Array:
    assert model.draft_heads is not None
    return model.draft_heads(hidden, count)


def _candidates(
    logits: jax.Array, state: DecodeState, inputs: Inputs, plan: Plan, noise: jax.Array | None
) -> Candidates:
    """Candidates from logits [batch, depth, vocab] whose row i guesses position n+1+i, under the root's window."""
    assert plan.tree is not None
    penalised = None
    if plan.processors.penalty:
        assert state.last_positions is not None
        none = jnp.zeros((*state.length.shape, 1, 0), jnp.int32)
        depths = jnp.zeros((*state.length.shape, 1), jnp.int32)
        length = state.length + 1
        penalised = penalty.row_penalised(state.last_positions, length, none, depths, inputs.sampling.window)
    depth = jnp.arange(logits.shape[1], dtype=jnp.int32)
    generated = (state.length + 1 - inputs.limits.prompt_length)[:, None] + depth[None, :]
    scores = process(
        logits, penalised=penalised, generated=generated, inputs=inputs.sampling, processors=plan.processors
    )
    guessed = None if noise is None else noise[:, : logits.shape[1]]
    tokens, log_probs = top_candidates(scores, guessed, max(plan.tree.widths))
    return [(tokens[:, i, :width], log_probs[:, i, :width]) for i, width in enumerate(plan.tree.widths)]


def _draft_forward(
    model: Decoder, state: DecodeState, plan: Plan, token: jax.Array, depth: jax.Array
) -> tuple[Rows, DecodeState]:
    """One row over the draft cache: `token` int32 [batch] at position n + depth, after `depth` drafted ones."""
    assert state.draft is not None
    assert plan.draft is not None
    batch = token.shape[0]
    in_use = slots_in_use(plan.draft, state.length)
    windowed = any(window is not None for window in plan.config.sliding_windows)
    rows, cache = forward_rows(
        model,
        token[:, None],
        (state.length + depth)[:, None],
        state.draft.cache,
        in_use + depth,
        jnp.ones((batch, 1, 1), bool),
        key_positions=state.draft.positions if windowed else None,
    )
    positions = state.draft.positions
    if windowed:
        # Later rows of a drafted chain must know where this one stands.
        slots = jnp.arange(positions.shape[3], dtype=jnp.int32)
        here = slots[None, :] == (in_use + depth)[:, None]
        positions = jnp.where(here[None, :, None, :], (state.length + depth)[None, :, None, None], positions)
    return rows, replace(state, draft=replace(state.draft, cache=cache, positions=positions))


def _drafted_chain(
    model: Decoder, state: DecodeState, inputs: Inputs, plan: Plan, noise: jax.Array | None
) -> tuple[Candidates, DecodeState]:
    """The backbone writes a chain over the draft cache, one forward a token (TriForce's and MagicDec's idea)."""
    assert plan.tree is not None
    token = _root(state)
    path: list[jax.Array] = []
    candidates: Candidates = []
    for index in range(plan.tree.depth):
        depth = jnp.full_like(token, index)
        rows, state = _draft_forward(model, state, plan, token, depth)
        penalised = None
        if plan.processors.penalty:
            assert state.last_positions is not None
            above = jnp.stack(path, axis=-1)[:, None] if path else jnp.zeros((*token.shape, 1, 0), jnp.int32)
            penalised = penalty.row_penalised(
                state.last_positions, state.length + 1, above, depth[:, None], inputs.sampling.window
            )
        generated = (state.length + 1 - inputs.limits.prompt_length + depth)[:, None]
        scores = process(
            model.logits(rows.hidden),
            penalised=penalised,
            generated=generated,
            inputs=inputs.sampling,
            processors=plan.processors,
        )
        guessed = None if noise is None else noise[:, index : index + 1]
        tokens, log_probs = top_candidates(scores, guessed, 1)
        candidates.append((tokens[:, 0], log_probs[:, 0]))
        token = tokens[:, 0, 0]
        path.append(token)
    return candidates, state
