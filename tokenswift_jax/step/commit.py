"""Commit: the tokens that an iteration emitted enter the text, the caches and the tables."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.commit_text import Committed, Ends, Text, commit_text, reference
from tokenswift_jax.finish import Finish
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rules import one_device
from tokenswift_jax.parallel.vocabulary import newest_positions
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.drafter import CommittedText, Outcome, Prepared
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.step.accept import tree_rows
from tokenswift_jax.step.state import DecodeState, StepInputs
from tokenswift_jax.step.verify import Verified
from tokenswift_jax.token_log import DRAFTED, NGRAM, SAMPLED

_REASONS = int(Finish.LENGTH), int(Finish.EOS), int(Finish.NOT_A_NUMBER)


def commit(
    state: DecodeState, prepared: Prepared, inputs: StepInputs, plan: Plan, tree: Tree, verified: Verified
) -> tuple[DecodeState, Prepared, Acceptance, jax.Array, jax.Array]:
    """The state after the iteration, the arrays prepared for the next one, the acceptance, its records and the number
    of them that count.

    Records are int32 [batch, depth + 1, 4], columns `token_log.RECORD`; the count int32 [batch] is 0 for finished rows.
    The first NaN, EOS or length limit, in the order of the text, cuts the emitted tokens.

    Args:
      state: the state before.
      prepared: the arrays prepared for this iteration.
      inputs: the inputs of the step.
      plan: its plan.
      tree: the verified tree.
      verified: its verification.
    """
    done, rows = _committed_text(state, inputs, plan, tree, verified), verified.computed
    acceptance, text, count = Acceptance(*done.acceptance), done.text, done.count

    cache = state.cache.keep(rows.new, acceptance.path, state.length) if plan.depth else state.cache
    committed = CommittedText(plan.config, text.tokens, text.length, inputs.sequence.ngram_lag, cache, rows.query)
    outcome = Outcome(committed, state.length, rows.new, plan.tree, tree, acceptance)
    drafter = plan.drafter.observe(state.drafter, outcome)

    moved = count > 0
    newest = partial(_of_newest, done.last, moved)
    hidden, prepared = jax.tree.map(newest, (rows.hidden, verified.prepared), (state.hidden, prepared))

    steps = jnp.arange(plan.depth + 1, dtype=jnp.int32)[None, :]
    by_ngram = jnp.take_along_axis(tree.drafted_by_ngram_only, acceptance.path[:, 1:], axis=1)
    by_ngram = jnp.pad(by_ngram, ((0, 0), (0, 1)))
    drafted = jnp.where(by_ngram, jnp.int32(NGRAM), jnp.int32(DRAFTED))
    source = jnp.where(steps < acceptance.accepted[:, None], drafted, jnp.int32(SAMPLED))
    offered = jnp.broadcast_to(tree.deepest[:, None], source.shape)
    records = jnp.stack([acceptance.emitted, source, jnp.broadcast_to(steps, source.shape), offered], axis=-1)
    state = replace(
        state,
        tokens=text.tokens,
        length=text.length,
        finish=text.finish,
        cache=cache,
        hidden=hidden,
        query=jnp.where(moved[None, :, None, None], rows.query, state.query),
        last_positions=text.last_positions,
        drafter=drafter,
    )
    return state, prepared, acceptance, records, count


def _of_newest(last: jax.Array, moved: jax.Array, rows: jax.Array, before: jax.Array) -> jax.Array:
    """The entries [batch, ..] of rows [batch, rows, ..] for the tree row `last` that drew each text's newest token; a
    text that has not moved keeps its entry `before`."""
    last = jnp.expand_dims(last, tuple(range(1, rows.ndim)))
    moved = jnp.expand_dims(moved, tuple(range(1, before.ndim)))
    return jnp.where(moved, jnp.take_along_axis(rows, last, axis=1)[:, 0], before)


def _committed_text(state: DecodeState, inputs: StepInputs, plan: Plan, tree: Tree, verified: Verified) -> Committed:
    settings = inputs.sequence
    text = Text(state.tokens, state.length, state.finish, state.last_positions)
    # Without `replicate`, XLA splits the set with the vocabulary on a mesh, and sums what each device finds in its
    # part.
    ends = Ends(settings.stop_length, replicate(settings.eos), _REASONS)
    rows = tree_rows(tree, verified.draws, verified.no_draw)
    if one_device():
        return commit_text(rows, text, ends, plan.depth)
    return reference.commit_text(rows, text, ends, plan.depth, newest_positions)
