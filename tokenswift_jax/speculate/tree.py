"""The tree of drafts: head nodes and n-gram chains, merged by (parent, token) (paper sections 3.2, 3.3).

A *slot* of the tree is a place for one node; the number of slots is static. Slot 0 is the root; then follow, depth by
depth, the head nodes and the chain tokens of that depth. `build` merges slots (a chain token that repeats another node
gives up its slot) and, under a budget, keeps the best nodes. Slots are few (about 100), so pairwise comparisons and one
top_k suffice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tokenswift_jax.speculate.tree_expand import TreeDepth
from tokenswift_jax.speculate.tree_spec import TreeSpec


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "parents", "depths", "valid", "drafted_by_ngram_only", "mask", "deepest", "path_tokens"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Tree:
    """The tree rows of one verify forward. Parents precede children; row 0 is the root; (parent, token) is unique.

    Attributes:
        tokens: int32 `[batch, rows]`; 0 where invalid.
        parents: int32 `[batch, rows]`, the parent's tree row; 0 for the root itself and where invalid.
        depths: int32 `[batch, rows]`, position minus the root's position; 0 where invalid.
        valid: bool `[batch, rows]`; the root is always valid.
        drafted_by_ngram_only: bool `[batch, rows]`; a chain drafted the node and no head did.
        mask: bool `[batch, rows, rows]`; a tree row sees its ancestors and itself, an invalid one only itself.
        deepest: int32 `[batch]`, the greatest depth of a valid tree row: the depth offered.
        path_tokens: int32 `[batch, rows, depth]`, the tokens on each tree row's path (`path_tokens_of`); None where
            they were not computed with the tree.
    """

    tokens: jax.Array
    parents: jax.Array
    depths: jax.Array
    valid: jax.Array
    drafted_by_ngram_only: jax.Array
    mask: jax.Array
    deepest: jax.Array
    path_tokens: jax.Array | None = None


def path_tokens_of(tree: Tree, depth: int) -> jax.Array:
    """The tokens on each tree row's path, int32 [batch, rows, depth]: entry j is at depth j + 1, its own is last."""
    if tree.path_tokens is not None:
        return tree.path_tokens
    level = jnp.arange(1, depth + 1, dtype=jnp.int32)[None, None, :, None]
    there = tree.mask[:, :, None, :] & (tree.depths[:, None, None, :] == level) & tree.valid[:, None, None, :]
    return jnp.sum(jnp.where(there, tree.tokens[:, None, None, :], 0), axis=-1, dtype=jnp.int32)


def build(
    shape: TreeSpec,
    root: jax.Array,
    levels: Sequence[TreeDepth],
    ngrams: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    ngram_scale: jax.Array | None = None,
) -> Tree:
    """Merges the head nodes with the n-gram chains and keeps the best `node_budget` nodes.

    Nodes rank by draft probability, then shallower first, then in slot order (within a depth head nodes first, then
    chains, as given). A head node's probability is the product along its path. A chain node's is the key's probability
    (1 for the root) times ngram_scale times (counts of the chains through the node) / (total of the key's counts + 1).
    A node of both has the larger. No child outranks its parent.

    Args:
        shape: the static shape; `rows` below is `shape.rows`.
        root: int32 `[batch]`, the newest emitted token.
        levels: the head nodes, depth by depth (`tree_expand.shared_levels`, `tree_expand.next_level`).
        ngrams: the result of `ngram.lookup` for the keys: continuations `[batch, keys, k, 3]`, counts
            `[batch, keys, k]`, totals `[batch, keys]`; None iff `shape.ngram_k` is 0.
        ngram_scale: float32 `[batch]` in (0, 1], which scales n-gram probabilities
            (`ngram_calibration.acceptance_scale`); None is 1.

    Raises:
        ValueError: the inputs do not fit the shape.
    """
    if tuple(level.tokens.shape[1] for level in levels) != shape.level_nodes or (ngrams is None) != (
        shape.ngram_k == 0
    ):
        raise ValueError("levels or n-grams do not fit the tree's shape")
    heads, chains = list(levels), []
    if ngrams is not None:
        heads, chains = _chains(shape, heads, ngrams, ngram_scale)
    score, fields = _in_slot_order(shape, root, heads, chains)
    if shape.node_budget is None and shape.rows == 1 + shape.slots:
        chosen = jnp.broadcast_to(jnp.arange(shape.rows, dtype=jnp.int32)[None], score.shape)
    else:
        score, chosen = lax.top_k(score, shape.rows)  # ties to the lower slot: shallower, then in order
        chosen = chosen.astype(jnp.int32)
        fields = fields.at[jnp.arange(root.shape[0], dtype=jnp.int32)[:, None], chosen].get(mode="clip")
    valid = score >= 0
    tokens, depths, by_chain, path = jnp.split(jnp.where(valid[..., None], fields, 0), (1, 2, 3), axis=-1)
    # path[r, t] is the slot of r's ancestor at depth t, so a comparison of slots finds ancestors without a loop.
    level = jnp.arange(shape.depth + 1, dtype=jnp.int32)[None, None]
    both = valid[:, :, None] & valid[:, None, :]
    is_slot = (path[:, :, None, :] == chosen[:, None, :, None]) & both[..., None]
    seen = jnp.any(is_slot & (level < depths)[:, :, None, :], axis=-1)
    is_parent = jnp.any(is_slot & (level == depths - 1)[:, :, None, :], axis=-1)
    row = jnp.arange(shape.rows, dtype=jnp.int32)
    return Tree(
        tokens=tokens[..., 0],
        parents=jnp.sum(jnp.where(is_parent, row[None, None, :], 0), axis=-1, dtype=jnp.int32),
        depths=depths[..., 0],
        valid=valid,
        drafted_by_ngram_only=by_chain[..., 0] > 0,
        mask=seen | (row[:, None] == row[None, :])[None],
        deepest=jnp.max(depths[..., 0], axis=-1),
    )


def _chains(
    shape: TreeSpec,
    heads: list[TreeDepth],
    ngrams: tuple[jax.Array, jax.Array, jax.Array],
    ngram_scale: jax.Array | None,
) -> tuple[list[TreeDepth], list[TreeDepth]]:
    """Returns the head levels, with raised scores of the nodes that chains share, and the levels of the chains.

    A chain token gives up its slot to the head node of the same path, else to the first chain of that path.
    """
    continuations, counts, totals = ngrams
    batch, keys, k = counts.shape
    key_score = jnp.ones((batch, 1), jnp.float32) if shape.keyed_by_root else heads[0].score
    live = (counts > 0) & (key_score >= 0)[..., None]
    unit = 1 / (totals + 1).astype(jnp.float32)
    unit = lax.optimization_barrier(unit if ngram_scale is None else unit * ngram_scale[:, None])
    key = jnp.broadcast_to(jnp.arange(keys, dtype=jnp.int32)[None, :, None], live.shape)
    chain = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None, None, :], live.shape)
    path = [jnp.zeros_like(key)] + [shape.first_slot(1) + key] * shape.key_depth
    same, in_heads, node = live[..., :, None] & live[..., None, :], live, key
    heads, tokens_and_scores = list(heads), []
    for step in range(shape.ngram_depth):
        depth, tokens = len(path), continuations[..., step]
        same &= tokens[..., :, None] == tokens[..., None, :]
        through = jnp.sum(jnp.where(same, counts[..., None, :], 0), axis=-1, dtype=jnp.int32)
        owner = jnp.min(jnp.where(same, chain[..., None, :], k), axis=-1)
        score = key_score[..., None] * jnp.minimum(through.astype(jnp.float32) * unit[..., None], 1)
        home = shape.first_slot(depth, chain=True) + key * k + owner
        if depth <= len(heads):
            level = heads[depth - 1]
            here = (level.parents[:, None, None] == node[..., None]) & (
                level.tokens[:, None, None] == tokens[..., None]
            )
            here &= (level.score >= 0)[:, None, None] & in_heads[..., None]
            place = jnp.arange(level.score.shape[1], dtype=jnp.int32)[None, None, None, :]
            node = jnp.max(jnp.where(here, place, -1), axis=-1)
            in_heads = node >= 0
            home = jnp.where(in_heads, shape.first_slot(depth) + node, home)
            raised = jnp.max(jnp.where(here, score[..., None], -1), axis=(1, 2))
            heads[depth - 1] = replace(level, score=jnp.maximum(level.score, raised))
            owned = live & ~in_heads & (owner == chain)
        else:
            owned = live & (owner == chain)
        path.append(home)
        tokens_and_scores.append((tokens, jnp.where(owned, score, -1)))
    paths = jnp.stack([*path, *[jnp.zeros_like(key)] * (shape.depth + 1 - len(path))], axis=-1)
    paths = paths.reshape(batch, keys * k, shape.depth + 1)
    parents = jnp.broadcast_to(jnp.arange(keys * k, dtype=jnp.int32)[None], (batch, keys * k))
    return heads, [
        TreeDepth(tokens.reshape(batch, keys * k), score.reshape(batch, keys * k), parents, None, paths)
        for tokens, score in tokens_and_scores
    ]


def _in_slot_order(
    shape: TreeSpec, root: jax.Array, heads: list[TreeDepth], chains: list[TreeDepth]
) -> tuple[jax.Array, jax.Array]:
    """Score `[batch, slots]` and fields `[batch, slots, 3 + depth + 1]` (token, depth, by chain, path), root first."""
    batch = root.shape[0]
    nothing = jnp.zeros((batch, 1), jnp.int32)
    no_path = jnp.zeros((batch, 1, shape.depth + 1), jnp.int32)
    start = TreeDepth(root[:, None], jnp.full((batch, 1), 2, jnp.float32), nothing, None, no_path)
    drafted = [(depth, 0, level) for depth, level in enumerate(heads, 1)]
    drafted += [(depth, 1, level) for depth, level in enumerate(chains, 1 + shape.key_depth)]
    sources = [(0, 0, start), *sorted(drafted, key=lambda item: item[:2])]
    static = [np.tile(np.array([[depth, by]], np.int32), (x.tokens.shape[1], 1)) for depth, by, x in sources]
    static = jnp.broadcast_to(jnp.asarray(np.concatenate(static))[None], (batch, 1 + shape.slots, 2))
    tokens = jnp.concatenate([x.tokens for *_, x in sources], axis=1)
    path = jnp.concatenate([x.path for *_, x in sources], axis=1)
    score = jnp.concatenate([x.score for *_, x in sources], axis=1)
    return score, jnp.concatenate([tokens[..., None], static, path], axis=-1)
