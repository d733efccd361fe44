"""Commit: the tokens that an iteration emitted enter the text, the caches and the tables."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tokenswift_jax.arrays import write_at
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.forward import Rows
from tokenswift_jax.parallel.residual import whole
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.params import contains
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.drafter import CommittedText, Outcome
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.step.state import DecodeState, StepInputs
from tokenswift_jax.token_log import DRAFTED, NGRAM, SAMPLED


def commit(
    state: DecodeState, inputs: StepInputs, plan: Plan, tree: Tree, walk: Acceptance, broken: jax.Array, rows: Rows
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The state after the iteration, its records and the number of them that count.

    Records are int32 [batch, depth + 1, 4], columns `token_log.RECORD`; the count int32 [batch] is 0 for finished rows.
    The first NaN, EOS or length limit, in the order of the text, cuts the emitted tokens.
    """
    steps = jnp.arange(plan.depth + 1, dtype=jnp.int32)[None, :]
    count, finish = _cut(state, inputs, walk, jnp.take_along_axis(broken, walk.path, axis=1))
    before, after = state.length, state.length + count

    # Tokens past `count` are scratch, like the cache's slots past the committed ones.
    tokens = write_at(state.tokens, walk.emitted, before + 1)

    cache = state.cache.keep(rows.new, walk.path, before) if plan.depth else state.cache
    text = CommittedText(plan.config, tokens, after, inputs.sequence.ngram_lag, cache, rows.query)
    outcome = Outcome(text, before, rows.new, plan.tree, tree, walk)
    drafter = plan.drafter.observe(state.drafter, outcome)

    # The tree row that drew the newest token; a frozen row keeps its hidden state and query.
    last = jnp.take_along_axis(walk.path, jnp.maximum(count - 1, 0)[:, None], axis=1)
    hidden = jnp.take_along_axis(rows.hidden, last[:, :, None], axis=1)[:, 0]
    moved = count > 0
    last_positions = penalty.advance(state.last_positions, tokens, before + 1, after + 1, plan.depth + 1)

    by_ngram = jnp.take_along_axis(tree.drafted_by_ngram_only, walk.path[:, 1:], axis=1)
    by_ngram = jnp.pad(by_ngram, ((0, 0), (0, 1)))
    drafted = jnp.where(by_ngram, jnp.int32(NGRAM), jnp.int32(DRAFTED))
    source = jnp.where(steps < walk.accepted[:, None], drafted, jnp.int32(SAMPLED))
    offered = jnp.broadcast_to(tree.deepest[:, None], source.shape)
    records = jnp.stack([walk.emitted, source, jnp.broadcast_to(steps, source.shape), offered], axis=-1)
    state = replace(
        state,
        tokens=tokens,
        length=after,
        finish=finish,
        cache=cache,
        hidden=jnp.where(moved[:, None], hidden, state.hidden),
        query=jnp.where(moved[None, :, None, None], rows.query, state.query),
        last_positions=last_positions,
        drafter=drafter,
    )
    return state, records, count


def _cut(state: DecodeState, inputs: StepInputs, walk: Acceptance, broken: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number of emitted tokens that count, int32 [batch], and the rows' `finish` after them."""
    params = inputs.sequence
    steps = jnp.arange(walk.emitted.shape[1], dtype=jnp.int32)[None, :]
    remaining = params.stop_length - (state.length + 1)
    count = jnp.minimum(walk.accepted + 1, remaining)
    never = jnp.int32(walk.emitted.shape[1])
    # Without `whole`, XLA splits the set with the vocabulary on a mesh, and sums what each device finds in its part.
    end = jnp.where(contains(whole(params.eos), jnp.maximum(walk.emitted, 0)), steps, never).min(axis=1)
    nan = jnp.where(broken, steps, never).min(axis=1)
    finish = jnp.where(count >= remaining, Finish.LENGTH, Finish.RUNNING)
    finish, count = jnp.where(end < count, Finish.EOS, finish), jnp.minimum(count, end + 1)
    finish, count = jnp.where(nan < count, Finish.NOT_A_NUMBER, finish), jnp.minimum(count, nan)
    frozen = state.finish != Finish.RUNNING
    return jnp.where(frozen, 0, count), jnp.where(frozen, state.finish, finish).astype(jnp.int32)
