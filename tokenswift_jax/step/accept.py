"""The walk: from the root, it follows the child whose token is its parent's draw.

Each tree row has one draw, so there is one longest path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.tree import Tree


def walk(tree: Tree, draws: jax.Array, depth: int) -> Acceptance:
    """Accepts the one path of the tree on which every token is the draw of the tree row above it.

    Args:
        tree: the verified tree; unique by (parent, token).
        draws: int32 `[batch, rows]`, the target's token after each tree row; ignored where invalid.
        depth: static, the deepest level the tree can have (`TreeSpec.depth`).
    """
    batch = jnp.arange(draws.shape[0], dtype=jnp.int32)[:, None]
    row = jnp.arange(draws.shape[1], dtype=jnp.int32)
    drawn = (tree.tokens == draws.at[batch, tree.parents].get(mode="clip")) | (row == 0)[None]
    agrees = drawn & tree.valid
    # A node is accepted iff it and all its ancestors agree. This decides all levels at once, without a descent.
    on_path = tree.valid & jnp.all(agrees[:, None, :] | ~tree.mask, axis=-1)
    accepted = jnp.sum(on_path, axis=-1, dtype=jnp.int32) - 1
    level = jnp.arange(depth + 1, dtype=jnp.int32)[None]
    reached = on_path[:, None, :] & (tree.depths[:, None, :] == jnp.minimum(level, accepted[:, None])[..., None])
    path = jnp.sum(jnp.where(reached, row[None, None], 0), axis=-1, dtype=jnp.int32)
    # The token of an accepted child is its parent's draw, so the draws along the path are the emitted tokens.
    emitted = jnp.where(level <= accepted[:, None], draws.at[batch, path].get(mode="clip"), -1)
    return Acceptance(path=path, accepted=accepted, emitted=emitted)
