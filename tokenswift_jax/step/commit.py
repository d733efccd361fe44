"""Commit: the tokens that an iteration emitted enter the text, the caches and the tables."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.commit_text import Committed, Ends, Text, commit_text, reference
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.forward import Rows
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rules import one_device
from tokenswift_jax.parallel.vocabulary import newest_positions
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.drafter import CommittedText, Outcome
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.step.accept import tree_rows
from tokenswift_jax.step.state import DecodeState, StepInputs
from tokenswift_jax.token_log import DRAFTED, NGRAM, SAMPLED

_REASONS = int(Finish.LENGTH), int(Finish.EOS), int(Finish.NOT_A_NUMBER)


def commit(
    state: DecodeState,
    inputs: StepInputs,
    plan: Plan,
    tree: Tree,
    draws: jax.Array,
    no_draw: jax.Array,
    rows: Rows,
    guesses: jax.Array | None = None,
) -> tuple[DecodeState, Acceptance, jax.Array, jax.Array]:
    """The state after the iteration, the acceptance, its records and the number of them that count.

    Records are int32 [batch, depth + 1, 4], columns `token_log.RECORD`; the count int32 [batch] is 0 for finished rows.
    The first NaN, EOS or length limit, in the order of the text, cuts the emitted tokens.

    Args:
      state: the state before.
      inputs: the inputs of the step.
      plan: its plan.
      tree: the verified tree.
      draws: int32 [batch, rows], the target's token after each tree row.
      no_draw: bool [batch, rows], whether there is no such token.
      rows: the results of the target's forward.
      guesses: the draft heads' logits [batch, rows, draft_heads, vocab] after every tree row; None where drafting
        computes them.
    """
    done = _committed_text(state, inputs, plan, tree, draws, no_draw)
    acceptance, text, count = Acceptance(*done.acceptance), done.text, done.count

    cache = state.cache.keep(rows.new, acceptance.path, state.length) if plan.depth else state.cache
    committed = CommittedText(plan.config, text.tokens, text.length, inputs.sequence.ngram_lag, cache, rows.query)
    outcome = Outcome(committed, state.length, rows.new, plan.tree, tree, acceptance)
    drafter = plan.drafter.observe(state.drafter, outcome)

    # The tree row that drew the newest token; a frozen row keeps its hidden state and query.
    hidden = jnp.take_along_axis(rows.hidden, done.last[:, None, None], axis=1)[:, 0]
    moved = count > 0
    if guesses is not None:
        assert state.guesses is not None
        guesses = jnp.take_along_axis(guesses, done.last[:, None, None, None], axis=1)[:, 0]
        guesses = jnp.where(moved[:, None, None], guesses, state.guesses)

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
        hidden=jnp.where(moved[:, None], hidden, state.hidden),
        query=jnp.where(moved[None, :, None, None], rows.query, state.query),
        last_positions=text.last_positions,
        drafter=drafter,
        guesses=guesses,
    )
    return state, acceptance, records, count


def _committed_text(
    state: DecodeState, inputs: StepInputs, plan: Plan, tree: Tree, draws: jax.Array, no_draw: jax.Array
) -> Committed:
    settings = inputs.sequence
    text = Text(state.tokens, state.length, state.finish, state.last_positions)
    # Without `replicate`, XLA splits the set with the vocabulary on a mesh, and sums what each device finds in its
    # part.
    ends = Ends(settings.stop_length, replicate(settings.eos), _REASONS)
    rows = tree_rows(tree, draws, no_draw)
    if one_device():
        return commit_text(rows, text, ends, plan.depth)
    return reference.commit_text(rows, text, ends, plan.depth, newest_positions)
