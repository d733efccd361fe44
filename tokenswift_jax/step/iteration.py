"""One iteration: draft a tree, verify it with the target, walk, commit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.speculate.draft import draft_tree
from tokenswift_jax.step.accept import Acceptance, walk
from tokenswift_jax.step.commit import commit
from tokenswift_jax.step.state import DecodeState, Plan, StepInputs
from tokenswift_jax.step.verify import root_only, verify


def iterate(
    model: Decoder, state: DecodeState, inputs: StepInputs, plan: Plan
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Emits, for every running row, the accepted drafts and the target's next draw: at least one token.

    Returns the state, records int32 [batch, depth + 1, 4] and their count int32 [batch] (`commit`). The text is the one
    that `plan.kind` `autoregressive` gives: draws depend on the position and on the row's own path alone.
    """
    noise = None
    if plan.features >= SamplingFeatures.SAMPLED:
        ahead = jnp.arange(1, plan.depth + 2, dtype=jnp.int32)
        positions = state.length[:, None] + ahead[None, :]
        noise = gumbel_noise(inputs.sequence.keys, positions, plan.config.vocab_size)
        noise = jnp.where((inputs.sequence.temperature > 0)[:, None, None], noise, 0)
    if plan.kind == "autoregressive":
        tree = root_only(state)
    else:
        drafter = model if plan.drafter is None else nnx.merge(plan.drafter, inputs.draft_params)
        tree, state = draft_tree(drafter, state, inputs, plan, noise)
    draws, broken, rows, state = verify(model, state, inputs, plan, tree, noise)
    won = walk(tree, draws, plan.depth) if plan.depth else _root_walk(draws)
    return commit(state, inputs, plan, tree, won, broken, rows)


def _root_walk(draws: jax.Array) -> Acceptance:
    """The walk of a tree that is its root."""
    zeros = jnp.zeros_like(draws)
    return Acceptance(path=zeros, accepted=zeros[:, 0], emitted=draws)
