"""Calibration of the n-grams: scales their probabilities by their recent hit rate on tokens that no head drafted.

An n-gram's share of its first token's counts is a poor forecast: a sampled or penalised text repeats itself far less
than the shares predict, and n-gram nodes with too high a score push better head nodes out of a node budget. If a head
drafts the same token, the n-gram adds nothing, so only the tokens that it alone drafts measure the value of its nodes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.ngram_table.sets import BestContinuation
from tokenswift_jax.speculate.acceptance import Acceptance
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_spec import TreeSpec

# Weight of the prior (a scale of 1), in observations. With 1.0, decayed failures never lower the scale enough:
# penalised text, whose n-grams fail, takes more passes, and text that repeats itself hardly fewer.
PRIOR_WEIGHT = 0.1
DECAY = 0.98  # an observation's weight at the next one: about fifty observations count


def unobserved(batch: int) -> jax.Array:
    """A record, float32 `[batch, 2]`, of no observations: its scale is 1."""
    return jnp.zeros((batch, 2), jnp.float32)


def acceptance_scale(record: jax.Array) -> jax.Array:
    """The scale of n-gram probabilities, float32 `[batch]` in (0, 1].

    Args:
        record: float32 `[batch, 2]`, decayed sums of hits and of the n-grams' predicted probabilities.
    """
    hits, predicted = record[:, 0], record[:, 1]
    return jnp.minimum((hits + PRIOR_WEIGHT) / (predicted + PRIOR_WEIGHT), 1)


def judged_key(shape: TreeSpec, tree: Tree, acceptance: Acceptance) -> jax.Array:
    """The accepted key of each row, whose most frequent continuation `observe` judges: the first column of the result,
    int32 `[batch, any]`."""
    return tree.tokens if shape.keyed_by_root else acceptance.emitted


def observe(
    record: jax.Array, shape: TreeSpec, best: BestContinuation, tree: Tree, acceptance: Acceptance, running: jax.Array
) -> jax.Array:
    """Updates the record after an iteration.

    The observation compares the first token of the most frequent continuation of the accepted key with the token that
    followed the key, whether or not a node budget kept its node (else a low scale could not recover). A row's record
    does not change if the row is not running, the accepted path contains no key, the key has no continuation, or a
    head drafted the same token below the key.

    Args:
        record: float32 `[batch, 2]`, as `acceptance_scale` takes it.
        shape: the tree's shape, with chains.
        best: the best continuation of `judged_key` in the table from which the tree was built (`ngram.updated`).
        tree: the verified tree.
        acceptance: the iteration's acceptance.
        running: bool `[batch]`.
    """
    followed = acceptance.emitted[:, shape.key_depth]
    seen = running if shape.keyed_by_root else running & (acceptance.accepted > 0)
    below = (
        tree.valid & (tree.parents == acceptance.path[:, shape.key_depth, None]) & (tree.depths == shape.key_depth + 1)
    )
    by_heads = below & ~tree.drafted_by_ngram_only & (tree.tokens == best.following[:, None])
    seen &= (best.count > 0) & ~by_heads.any(axis=1)
    predicted = best.through.astype(jnp.float32) / (best.total + 1).astype(jnp.float32)
    hit = (best.following == followed).astype(jnp.float32)
    return jnp.where(seen[:, None], jnp.float32(DECAY) * record + jnp.stack([hit, predicted], axis=1), record)
