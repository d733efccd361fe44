"""Expansion of the draft heads' tree, level by level: candidates of a depth below the nodes of the depth above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tokenswift_jax.speculate.tree_spec import TreeSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeDepth:
    """The slots of one depth, for head nodes or for n-gram chains.

    Attributes:
        tokens: int32 `[batch, nodes]`.
        score: float32 `[batch, nodes]`, the product of the draft probabilities along the path; negative if the slot
            contains no node.
        parents: int32 `[batch, nodes]`, index of each node's parent among the nodes of the level above.
        node_set_index: int32 `[batch, nodes]`, indices into a node set (`TreeSpec.children`) if candidates differ
            from parent to parent; else None.
        path: int32 `[batch, nodes, depth + 1]`, depth being the tree's; entry t is the slot of the ancestor at depth t.
    """

    tokens: jax.Array
    score: jax.Array
    parents: jax.Array
    node_set_index: jax.Array | None
    path: jax.Array


def shared_levels(shape: TreeSpec, candidates: Sequence[tuple[jax.Array, jax.Array]]) -> list[TreeDepth]:
    """The levels of a tree in which all nodes of a depth have the same candidates (chained heads).

    Args:
        shape: the static shape, not `per_parent`.
        candidates: per depth int32 tokens `[batch, width]`, distinct within a depth, and float log-probabilities
            `[batch, width]` (`sample.draw.top_candidates`), -inf where a filter removed the token.

    Raises:
        ValueError: the candidates do not fit the shape.
    """
    if shape.per_parent or tuple(tokens.shape[1] for tokens, _ in candidates) != shape.widths:
        raise ValueError("candidates do not fit the tree's shape")
    levels: list[TreeDepth] = []
    paths = np.zeros((1, shape.depth + 1), np.int32)
    for depth, (tokens, log_probs) in enumerate(candidates, 1):
        parents, ranks = shape.shared_places(depth)
        paths = paths[parents]
        paths[:, depth] = shape.first_slot(depth) + np.arange(len(parents))
        batch, own = tokens.shape[0], _probability(log_probs)
        above = levels[-1].score if levels else jnp.ones((batch, 1), jnp.float32)
        if shape.node_set is None:
            width = tokens.shape[1]
            above, own = jnp.repeat(above, width, axis=1), jnp.tile(own, (1, above.shape[1]))
            tokens = jnp.tile(tokens, (1, own.shape[1] // width))
        else:
            above, own, tokens = above[:, parents], own[:, ranks], tokens[:, ranks]
        levels.append(
            TreeDepth(
                tokens=tokens,
                score=_product(above, own),
                parents=jnp.broadcast_to(jnp.asarray(parents)[None], tokens.shape),
                node_set_index=None,
                path=jnp.broadcast_to(jnp.asarray(paths)[None], (batch, *paths.shape)),
            )
        )
    return levels


def next_level(
    shape: TreeSpec, levels: Sequence[TreeDepth], parents: jax.Array, tokens: jax.Array, log_probs: jax.Array
) -> TreeDepth:
    """The level below `levels` if each expanded parent has its own candidates (sequential heads).

    Args:
        shape: the static shape, `per_parent`.
        levels: the levels above, from depth 1; empty below the root.
        parents: int32 `[batch, expanded]`, ascending: the expanded nodes of the level above (`select_frontier`); 0, the
            root, for depth 1.
        tokens: int32 `[batch, expanded, width]`, distinct below each parent.
        log_probs: float `[batch, expanded, width]`, -inf where a filter removed the token.
    """
    depth = len(levels) + 1
    batch, _, width = tokens.shape
    nodes = shape.level_nodes[depth - 1]
    if parents.shape != (batch, shape.expanded(depth)) or tokens.shape != (*parents.shape, shape.widths[depth - 1]):
        raise ValueError("candidates do not fit the tree's shape")
    if levels:
        above = jnp.take_along_axis(levels[-1].score, parents, axis=1, mode="clip")
        path = jnp.take_along_axis(levels[-1].path, parents[..., None], axis=1, mode="clip")
    else:
        above = jnp.ones((batch, 1), jnp.float32)
        path = jnp.zeros((batch, 1, shape.depth + 1), jnp.int32)
    score, node_set_index = _product(above[..., None], _probability(log_probs)), None
    if shape.node_set is not None:
        table = jnp.asarray(shape.children[depth - 1])
        own = parents
        if levels:
            assert levels[-1].node_set_index is not None
            own = jnp.take_along_axis(levels[-1].node_set_index, parents, axis=1, mode="clip")
        node_set_index = table.at[own].get(mode="clip")
        score = jnp.where(node_set_index >= 0, score, -1)
        node_set_index = node_set_index.reshape(batch, nodes)
    slots = shape.first_slot(depth) + jnp.arange(nodes, dtype=jnp.int32)
    here = jnp.arange(shape.depth + 1, dtype=jnp.int32)[None, None] == depth
    return TreeDepth(
        tokens=tokens.reshape(batch, nodes),
        score=score.reshape(batch, nodes),
        parents=jnp.repeat(parents, width, axis=1),
        node_set_index=node_set_index,
        path=jnp.where(here, slots[None, :, None], jnp.repeat(path, width, axis=1)),
    )


def select_frontier(shape: TreeSpec, levels: Sequence[TreeDepth]) -> jax.Array:
    """The nodes of the last level to expand, int32 `[batch, expanded]`, ascending: the best, ties to the lower slot.

    They include every node that could have a child within the node budget. The choice prefers nodes with a child in
    the node set.
    """
    level, count = levels[-1], shape.expanded(len(levels) + 1)
    batch, nodes = level.score.shape
    if count == nodes:
        return jnp.broadcast_to(jnp.arange(nodes, dtype=jnp.int32)[None], (batch, nodes))
    score = level.score
    if shape.node_set is not None:
        assert level.node_set_index is not None
        fertile = jnp.asarray(shape.has_children[len(levels)]).at[level.node_set_index].get(mode="clip")
        score = jnp.where(fertile, score, -1)
    return jnp.sort(lax.top_k(score, count)[1].astype(jnp.int32), axis=1)


def _probability(log_probs: jax.Array) -> jax.Array:
    """Computes exp in float32, at most 1; -1 for -inf and NaN.

    Scores are products of these probabilities, all factors <= 1, so rounding cannot lift a child above its parent.
    Without the barrier, XLA may recompute exp in a fusion with a different last bit.
    """
    probability = jnp.where(log_probs > -jnp.inf, jnp.minimum(jnp.exp(log_probs), 1), -1)
    return lax.optimization_barrier(probability.astype(jnp.float32))


def _product(above: jax.Array, own: jax.Array) -> jax.Array:
    return jnp.where((above >= 0) & (own >= 0), above * own, -1)
