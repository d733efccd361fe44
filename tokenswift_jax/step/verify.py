"""Verification: one target forward over the tree rows, and one draw per tree row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from tokenswift_jax.kv.forward import Rows, forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.sample.sampler import LogitsBatch, SamplingContext, draw_rows
from tokenswift_jax.speculate.drafter import Prepared
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import Tree, path_tokens_of
from tokenswift_jax.step.state import DecodeState, StepInputs


@dataclass(frozen=True)
class Verified:
    """The target's verification of a tree.

    Attributes:
      draws: int32 [batch, rows], the target's token after every tree row.
      no_draw: bool [batch, rows], whether there is no such token (`sampler.draw_rows`).
      computed: the results of the forward.
      rows, context: the inputs of the draws.
      prepared: the arrays [batch, rows, ..] that the drafter reads of the tree row that draws the next root.
    """

    draws: jax.Array
    no_draw: jax.Array
    computed: Rows
    rows: LogitsBatch
    context: SamplingContext
    prepared: Prepared


def verify(
    model: Decoder, state: DecodeState, inputs: StepInputs, plan: Plan, tree: Tree, noise: jax.Array | None
) -> tuple[Verified, DecodeState]:
    """The target's draw after every tree row, and the state with the rows' K/V in the cache's scratch slots.

    noise is float32 [batch, depth + 1, vocab] of positions n+1 .., None when greedy; tree rows of one depth share it.
    """
    positions = state.length[:, None] + tree.depths
    batch = RowBatch(tree.tokens, positions, state.length, TreeMask(tree.mask))
    computed, cache = forward_rows(model, batch, state.cache)
    logits, prepared = plan.drafter.score(model, computed.hidden, plan.heads_verified(state.length.shape[0]))
    rows = LogitsBatch(logits, tree.depths, path_tokens_of(tree, plan.depth))
    context = SamplingContext(state.length + 1, state.last_positions, noise, inputs.sequence)
    draws, no_draw = draw_rows(rows, context, plan.features)
    return Verified(draws, no_draw, computed, rows, context, prepared), replace(state, cache=cache)
