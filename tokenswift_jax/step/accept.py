"""Acceptance: from the root, follow the child whose token is its parent's draw.

Each tree row has one draw, so there is one longest path.
"""

from __future__ import annotations

import jax

from pallas_kernels.commit_text import TreeRows, reference
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.tree import Tree


def accept(tree: Tree, draws: jax.Array, depth: int) -> Acceptance:
    """Accepts the one path of the tree on which every token is the draw of the tree row above it.

    Args:
        tree: the verified tree; unique by (parent, token).
        draws: int32 `[batch, rows]`, the target's token after each tree row; ignored where invalid.
        depth: static, the deepest level the tree can have (`TreeSpec.depth`).
    """
    return Acceptance(*reference.accept(tree_rows(tree, draws, draws < 0), depth))


def tree_rows(tree: Tree, draws: jax.Array, no_draw: jax.Array) -> TreeRows:
    """The tree and its draws as the kernel takes them; no_draw is bool `[batch, rows]`, whether a row has no draw."""
    return TreeRows(tree.tokens, tree.parents, tree.depths, tree.valid, tree.mask, draws, no_draw)
