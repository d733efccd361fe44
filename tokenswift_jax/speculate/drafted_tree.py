"""The tree of the drafts below a batch of roots, from the heads' candidates and an n-gram table."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import draft_tree
from pallas_kernels.draft_tree import Candidates, Chains, Slots
from tokenswift_jax.parallel.rules import one_device
from tokenswift_jax.speculate import ngram
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.tree import Tree, build
from tokenswift_jax.speculate.tree_expand import TreeDepth
from tokenswift_jax.speculate.tree_spec import TreeSpec


def drafted_tree(
    shape: TreeSpec,
    root: jax.Array,
    levels: Sequence[TreeDepth],
    table: NgramTable | None = None,
    ngram_scale: jax.Array | None = None,
) -> Tree:
    """`tree.build` with the chains of a table: below the root or, if the tree says so, below each candidate of depth 1.

    Args:
        shape: the static shape.
        root: int32 `[batch]`, the newest emitted token.
        levels: the head nodes, depth by depth.
        table: the n-gram table; None iff `shape.ngram_k` is 0.
        ngram_scale: float32 `[batch]` in (0, 1], which scales n-gram probabilities; None is 1.
    """
    chains = None
    if table is not None:
        scale = jnp.ones(root.shape, jnp.float32) if ngram_scale is None else ngram_scale
        chains = Chains(table.entries, scale)
    # The kernel has one key.
    if shape.keys <= 1 and one_device() and draft_tree.fits(slots_of(shape), chains):
        candidates = None
        if levels:
            arrays = ((level.tokens, level.score, level.parents) for level in levels)
            candidates = Candidates(*(jnp.concatenate(every, axis=1) for every in zip(*arrays, strict=True)))
        found = draft_tree.draft_tree(slots_of(shape), root, candidates, chains)
        return Tree(
            tokens=found.tokens,
            parents=found.parents,
            depths=found.depths,
            valid=found.valid,
            drafted_by_ngram_only=found.by_ngram,
            mask=found.mask,
            deepest=found.deepest,
            path_tokens=found.path_tokens,
        )
    continuations = None
    if table is not None:
        first = root[:, None] if shape.keyed_by_root else levels[0].tokens
        continuations = ngram.lookup(table, first, shape.ngram_k)
    return build(shape, root, levels, continuations, ngram_scale)


def slots_of(shape: TreeSpec) -> Slots:
    """The sizes of a tree as the kernel takes them."""
    depths = range(1, 1 + len(shape.widths))
    chained = range(shape.key_depth + 1, shape.key_depth + 1 + shape.ngram_depth) if shape.ngram_k else ()
    return Slots(
        candidates=tuple((shape.first_slot(depth), shape.level_nodes[depth - 1]) for depth in depths),
        chains=tuple((shape.first_slot(depth, chain=True), depth) for depth in chained),
        k=shape.ngram_k,
        key_depth=shape.key_depth,
        slots=1 + shape.slots,
        rows=shape.rows,
        depth=shape.depth,
    )
