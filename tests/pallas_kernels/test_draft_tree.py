"""The tree's GPU kernel against the plain lookup and `build`, bit for bit, on alphabets so small that heads and chains
collide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import calls_a_kernel

from pallas_kernels.implementation import compiling_for
from tokenswift_jax.speculate import ngram, ngram_fill
from tokenswift_jax.speculate.drafted_tree import drafted_tree
from tokenswift_jax.speculate.tree import path_tokens_of
from tokenswift_jax.speculate.tree_expand import next_level, shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec

BATCH, VOCAB, SLOTS = 12, 5, 4
NODE_SET = ((0,), (1,), (0, 0), (2,), (0, 0, 1), (1, 0), (0, 2))
SHAPES = {
    "fused": TreeSpec((3, 3, 3), 4, node_budget=15),
    "partial": TreeSpec((1, 3, 3), 4, node_budget=9, keyed_by_root=False),
    "everything": TreeSpec((3, 2), 5, ngram_depth=2),
    "chains alone": TreeSpec((), 6, node_budget=7),
    "heads alone": TreeSpec((2, 2, 1), node_budget=5),
    "a node set": TreeSpec((3, 3, 2), 3, node_budget=6, node_set=NODE_SET),
    "sequential heads": TreeSpec((2, 3), 3, node_budget=8, per_parent=True),
}


def made(shape, seed):
    """Texts with an n-gram table, and candidates: with ties, filtered tokens and n-grams that repeat heads."""
    rng = np.random.default_rng(seed)
    text = jnp.asarray(rng.integers(0, VOCAB, (BATCH, 48)), jnp.int32)
    table = None
    if shape.ngram_k:
        ends = jnp.asarray(rng.integers(0, 48, BATCH), jnp.int32)
        table = jax.jit(ngram_fill.fill)(ngram.empty(BATCH, 48, SLOTS), text, ends)
    candidates = []
    for depth, width in enumerate(shape.widths, 1):
        parents = shape.expanded(depth) if shape.per_parent else 1
        tokens = np.argsort(rng.random((BATCH, parents, VOCAB)), axis=-1)[..., :width]
        chances = rng.choice([-np.inf, -1.0, -0.25, 0.0], size=tokens.shape, p=[0.1, 0.4, 0.4, 0.1])
        candidates.append((jnp.asarray(tokens, jnp.int32), jnp.asarray(chances, jnp.float32)))
    scale = jnp.asarray(rng.choice([0.25, 0.7, 1.0], BATCH), jnp.float32)
    return text[:, 0], candidates, table, scale if shape.calibrated else None


@functools.partial(jax.jit, static_argnames=("shape", "way"))
def tree_of(shape, root, candidates, table, scale, *, way):
    levels = []
    if shape.per_parent:
        for depth, (tokens, chances) in enumerate(candidates, 1):
            parents = jnp.broadcast_to(jnp.arange(shape.expanded(depth), dtype=jnp.int32), tokens.shape[:2])
            levels.append(next_level(shape, levels, parents, tokens, chances))
    elif candidates:
        levels = shared_levels(shape, [(tokens[:, 0], chances[:, 0]) for tokens, chances in candidates])
    with compiling_for(way, interpret=way != "reference"):
        tree = drafted_tree(shape, root, levels, table, scale)
        return tree, path_tokens_of(tree, shape.depth)


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_kernel_is_the_definition(name):
    shape = SHAPES[name]
    given = made(shape, len(name))
    (tree, paths), (expected, same_paths) = (tree_of(shape, *given, way=way) for way in ("gpu", "reference"))
    assert tree.path_tokens is not None
    assert expected.path_tokens is None
    for field in ("tokens", "parents", "depths", "valid", "drafted_by_ngram_only", "mask", "deepest"):
        np.testing.assert_array_equal(getattr(tree, field), getattr(expected, field), err_msg=field)
    np.testing.assert_array_equal(paths, same_paths)
    valid = np.asarray(expected.valid)
    assert valid[:, 1:].any()
    if shape.ngram_k:
        assert np.asarray(expected.drafted_by_ngram_only).any()


def test_the_trees_that_the_kernel_takes():
    """The kernel takes trees of the plans' sizes; several keys and sets of other sizes go to the definition."""
    for shape, slots, kernel in (
        (TreeSpec((3, 3, 3), 20, node_budget=15), 32, True),
        (TreeSpec((1, 3, 3, 3), 20, node_budget=63, keyed_by_root=False), 32, True),
        (TreeSpec((3, 3), 20, keyed_by_root=False), 32, False),
        (TreeSpec((3, 3, 3), 20, node_budget=15), 30, False),
        (TreeSpec((), 20), 32, True),
    ):
        given = jax.eval_shape(functools.partial(arguments, shape, slots))
        assert calls_a_kernel("gpu", functools.partial(from_shapes, shape), *given) == kernel


def arguments(shape, slots):
    candidates = [(jnp.zeros((1, width), jnp.int32), jnp.zeros((1, width))) for width in shape.widths]
    return jnp.zeros(1, jnp.int32), candidates, ngram.empty(1, 256, slots)


def from_shapes(shape, root, candidates, table):
    return drafted_tree(shape, root, shared_levels(shape, candidates) if candidates else [], table)
