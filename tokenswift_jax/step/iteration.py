"""One iteration: draft a tree, verify it with the target, accept the path that its draws follow, commit."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.stages import of_first_stage
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.logprobs import Logprobs, path_logprobs
from tokenswift_jax.speculate.drafter import Prepared
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.commit import commit
from tokenswift_jax.step.draft import draft_tree
from tokenswift_jax.step.state import DecodeState, StepInputs
from tokenswift_jax.step.verify import verify


@pytree
class Emitted:
    """The emitted tokens of an iteration, or of a chunk of iterations, one entry per token.

    Attributes:
      records: int32 [batch, count, 4], columns `token_log.RECORD`.
      logprobs: log-probabilities of the same tokens; None where the plan asks for none.
    """

    records: jax.Array = axes("batch", "count", "columns")
    logprobs: Logprobs | None


def iterate(
    model: Decoder, state: DecodeState, prepared: Prepared, inputs: StepInputs, plan: Plan
) -> tuple[DecodeState, Prepared, Emitted, jax.Array]:
    """Emits, for every running row, the accepted drafts and the target's next draw: at least one token.

    Returns the state, the arrays prepared for the next iteration, the emitted tokens and their number, int32 [batch]
    (`commit`). The text is the one that plain decoding gives, because a draw depends only on the position and the tree
    row's own path.
    """
    noise = None
    if plan.features >= SamplingFeatures.SAMPLED:
        ahead = jnp.arange(1, plan.depth + 2, dtype=jnp.int32)
        positions = state.length[:, None] + ahead[None, :]
        noise = gumbel_noise(inputs.sequence.keys, positions, plan.config.padded_vocab)
        noise = jnp.where((inputs.sequence.temperature > 0)[:, None, None], noise, 0)
    tree, state = draft_tree(model, state, prepared, inputs, plan, noise)
    tree = of_first_stage(tree)
    verified, state = verify(model, state, inputs, plan, tree, noise)
    draws, no_draw = of_first_stage((verified.draws, verified.no_draw))
    verified = replace(verified, draws=draws, no_draw=no_draw)
    state, prepared, acceptance, records, count = commit(state, prepared, inputs, plan, tree, verified)
    logprobs = None
    if plan.logprobs is not None:
        on_path = verified.rows, verified.context, acceptance.path, acceptance.emitted
        logprobs = path_logprobs(plan.logprobs, *on_path, plan.features)
    return state, prepared, Emitted(records, logprobs), count
