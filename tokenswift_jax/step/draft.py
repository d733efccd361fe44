"""Drafting: the plan's drafter proposes the tree of an iteration."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.speculate.candidates import DraftSampler
from tokenswift_jax.speculate.drafter import Prepared, Roots
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.step.state import DecodeState, StepInputs


def draft_tree(
    model: Decoder, state: DecodeState, prepared: Prepared, inputs: StepInputs, plan: Plan, noise: jax.Array | None
) -> tuple[Tree, DecodeState]:
    """Returns the tree that this iteration verifies, and the state; drafting overwrites scratch slots.

    prepared is for the rows that drew the roots, from the iteration before or the beginning of the chunk. noise is
    float32 [batch, depth + 1, vocab] of positions n+1 .., None when greedy; a plan without `shared_noise` drafts as if
    noise were None.
    """
    ranking = DraftSampler(
        next_position=state.length + 1,
        last_positions=state.last_positions,
        noise=noise if plan.shared_noise else None,
        settings=inputs.sequence,
        features=plan.features,
    )
    roots = Roots(
        config=plan.config,
        tree=plan.tree,
        token=jnp.take_along_axis(state.tokens, state.length[:, None], axis=1)[:, 0],
        length=state.length,
        hidden=state.hidden,
        cache=state.cache,
        ranking=ranking,
        prepared=prepared,
    )
    drafting = model if plan.draft_graph is None else nnx.merge(plan.draft_graph, inputs.draft_params)
    tree, own, cache = plan.drafter.propose(drafting, roots, state.drafter)
    return tree, replace(state, cache=cache, drafter=own)
