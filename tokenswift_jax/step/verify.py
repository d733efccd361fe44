"""Verification: one target forward over the tree's rows, one draw a row, one walk."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.sample.sampler import RowInputs, TextInputs, draw_rows
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.step.forward import Rows, forward_rows
from tokenswift_jax.step.state import DecodeState, Plan, StepInputs


def verify(
    model: Decoder, state: DecodeState, inputs: StepInputs, plan: Plan, tree: Tree, noise: jax.Array | None
) -> tuple[jax.Array, jax.Array, Rows, DecodeState]:
    """The target's draw after every row.

    Returns draws int32 [batch, rows]; broken bool [batch, rows], whose logits hold NaN; what the forward computed; and
    the state with the rows' K/V in the cache's scratch slots. noise is float32 [batch, depth + 1, vocab] of positions
    n+1 .., None when greedy: rows of one depth share theirs.
    """
    rows, cache = forward_rows(
        model, tree.tokens, state.length[:, None] + tree.depths, state.cache, state.length, tree.mask
    )
    logits = model.logits(rows.hidden)
    draws, broken = draw_rows(
        RowInputs(logits, tree.depths, path_tokens(tree, plan.depth)),
        TextInputs(state.length + 1, state.last_positions, noise, inputs.sequence),
        plan.features,
    )
    return draws, broken, rows, replace(state, cache=cache)


def path_tokens(tree: Tree, depth: int) -> jax.Array:
    """int32 [batch, rows, depth]: entry j is the token at depth j + 1 on the row's path, its own last."""
    level = jnp.arange(1, depth + 1, dtype=jnp.int32)[None, None, :, None]
    there = tree.mask[:, :, None, :] & (tree.depths[:, None, None, :] == level) & tree.valid[:, None, None, :]
    return jnp.sum(jnp.where(there, tree.tokens[:, None, None, :], 0), axis=-1, dtype=jnp.int32)


def root_only(state: DecodeState) -> Tree:
    """The tree of plain decoding: the root alone."""
    root = jnp.take_along_axis(state.tokens, state.length[:, None], axis=1)
    zeros = jnp.zeros_like(root)
    yes = jnp.ones_like(root, dtype=bool)
    return Tree(root, zeros, zeros, yes, ~yes, yes[:, :, None], zeros[:, 0])
