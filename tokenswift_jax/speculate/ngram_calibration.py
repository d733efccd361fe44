"""Trust in the n-grams: their probabilities are scaled by how often they have lately been right where no head was.

An n-gram's share of its key's row is no forecast: a text that is drawn or penalised repeats itself far less than the
shares say, and nodes that score too high drive better ones of the heads out of a node budget. Where a head drafts the
same token the n-gram adds nothing, so that only what it drafts alone says what its nodes are worth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tokenswift_jax.speculate import ngram
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.accept import Acceptance

# Observations' worth of belief in the table as it stands. With 1.0, decayed failures never cost as much trust as they
# should: penalised text, whose n-grams fail, takes more passes, and text that repeats itself hardly fewer.
PRIOR = 0.1
DECAY = 0.98  # an observation's weight at the next one: some fifty count


def unobserved(batch: int) -> jax.Array:
    """A record, float32 `[batch, 2]`, of no observations: trust 1."""
    return jnp.zeros((batch, 2), jnp.float32)


def factor(record: jax.Array) -> jax.Array:
    """What n-gram probabilities are multiplied by, float32 `[batch]` in (0, 1].

    Args:
        record: float32 `[batch, 2]`, decayed sums of hits and of the probabilities claimed.
    """
    hits, claims = record[:, 0], record[:, 1]
    return jnp.minimum((hits + PRIOR) / (claims + PRIOR), 1)


def observe(
    record: jax.Array, shape: TreeSpec, table: NgramTable, tree: Tree, walk: Acceptance, running: jax.Array
) -> jax.Array:
    """The record after an iteration.

    Observed is the first token of the most frequent continuation of the key that the walk went through, whether or not
    a node budget kept it (else lost trust could not come back), against the token that followed the key. A row stays
    as it is where it is not running, the walk went through no key, the key has no continuation, or a head drafted the
    same token below it.

    Args:
        record: float32 `[batch, 2]`, as `factor` takes it.
        shape: the tree's shape, with chains.
        table: the table that the tree was built from.
        tree: that was verified.
        walk: what the iteration accepted.
        running: bool `[batch]`.
    """
    if shape.keyed_by_root:
        key, followed, seen = tree.tokens[:, 0], walk.emitted[:, 0], running
    else:
        key, followed, seen = walk.emitted[:, 0], walk.emitted[:, 1], running & (walk.accepted > 0)
    below = tree.valid & (tree.parents == walk.path[:, shape.key_depth, None]) & (tree.depths == shape.key_depth + 1)
    continuations, counts, totals = ngram.lookup(table, key[:, None], shape.ngram_k)
    first, counts = continuations[:, 0, :, 0], counts[:, 0]
    by_heads = below & ~tree.drafted_by_ngram_only & (tree.tokens == first[:, :1])
    seen &= (counts[:, 0] > 0) & ~by_heads.any(axis=1)
    through = jnp.sum(jnp.where(first == first[:, :1], counts, 0), axis=1, dtype=jnp.int32)
    claim = through.astype(jnp.float32) / (totals[:, 0] + 1).astype(jnp.float32)
    hit = (first[:, 0] == followed).astype(jnp.float32)
    return jnp.where(seen[:, None], jnp.float32(DECAY) * record + jnp.stack([hit, claim], axis=1), record)
