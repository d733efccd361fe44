"""Acceptance against the obvious descent, on trees that hypothesis makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswift_jax.speculate import ngram, ngram_fill
from tokenswift_jax.speculate.tree import Tree, build
from tokenswift_jax.speculate.tree_expand import shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.accept import accept

ROWS, DEPTH, VOCAB = 9, 4, 3
compiled_accept = jax.jit(accept, static_argnums=2)


@st.composite
def trees(draw):
    """Lists (tokens, parents, depths, valid): parents first, unique by (parent, token), invalid rows strewn in."""
    tokens, parents, depths, valid = [draw(st.integers(0, VOCAB - 1))], [0], [0], [True]
    taken = set()
    for _ in range(ROWS - 1):
        parent = draw(st.integers(0, len(tokens) - 1))
        token = draw(st.integers(0, VOCAB - 1))
        good = valid[parent] and depths[parent] < DEPTH and (parent, token) not in taken and draw(st.integers(0, 7)) > 0
        taken.add((parent, token))
        tokens.append(token if good else 0)
        parents.append(parent if good else 0)
        depths.append(depths[parent] + 1 if good else 0)
        valid.append(good)
    return tokens, parents, depths, valid


def as_tree(batch):
    tokens, parents, depths, valid = (np.array([row[i] for row in batch]) for i in range(4))
    mask = np.zeros((len(batch), ROWS, ROWS), bool)
    for b, (_, parent, _, ok) in enumerate(batch):
        for row in range(ROWS):
            mask[b, row, row] = True
            while ok[row] and row:
                mask[b, row] |= mask[b, parent[row]]
                break
    return Tree(
        tokens=jnp.asarray(tokens, jnp.int32),
        parents=jnp.asarray(parents, jnp.int32),
        depths=jnp.asarray(depths, jnp.int32),
        valid=jnp.asarray(valid),
        drafted_by_ngram_only=jnp.zeros((len(batch), ROWS), bool),
        mask=jnp.asarray(mask),
        deepest=jnp.asarray(depths.max(-1), jnp.int32),
    )


def descend(tree, draws):
    """The definition: from the root, to the child that carries the draw, until there is none."""
    tokens, parents, _, valid = tree
    row, path, emitted = 0, [0], []
    while True:
        emitted.append(draws[row])
        children = [c for c in range(1, ROWS) if valid[c] and parents[c] == row and tokens[c] == draws[row]]
        assert len(children) <= 1
        if not children:
            return path, emitted
        row = children[0]
        path.append(row)


@settings(max_examples=300, deadline=None)
@given(
    batch=st.tuples(trees(), trees()),
    draws=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=ROWS, max_size=ROWS), min_size=2, max_size=2),
)
def test_walk_is_the_plain_descent(batch, draws):
    result = compiled_accept(as_tree(batch), jnp.asarray(draws, jnp.int32), DEPTH)
    for b, tree in enumerate(batch):
        path, emitted = descend(tree, draws[b])
        accepted = len(path) - 1
        assert int(result.accepted[b]) == accepted
        padding = DEPTH - accepted
        assert result.path[b].tolist() == path + [path[-1]] * padding
        assert result.emitted[b].tolist() == emitted + [-1] * padding


def test_a_whole_chain_is_accepted():
    tokens, parents = [2, 0, 1, 2, 1, 0, 0, 0, 0], [0, 0, 1, 2, 3, 0, 0, 0, 0]
    chain = (tokens, parents, [0, 1, 2, 3, 4, 0, 0, 0, 0], [True] * 5 + [False] * 4)
    draws = [[0, 1, 2, 1, 2, 0, 0, 0, 0]]
    result = compiled_accept(as_tree([chain]), jnp.asarray(draws, jnp.int32), DEPTH)
    assert result.accepted.tolist() == [4]
    assert result.path.tolist() == [[0, 1, 2, 3, 4]]
    assert result.emitted.tolist() == [[0, 1, 2, 1, 2]]


def test_table_tree_and_walk_keep_their_dtypes_in_a_float64_loop():
    """The carry of a while loop must not widen under x64, and the numbers must be those of float32."""
    shape = TreeSpec((2, 3), 4, node_budget=6, keyed_by_root=False)
    text = np.random.default_rng(0).integers(0, 4, (2, 64))

    def run(dtype, insert):
        tokens = jnp.asarray(text, jnp.int32)
        log_probs = jnp.asarray(np.log([[0.53, 0.29, 0.11]] * 2), dtype)

        def body(state):
            step, table, total = state
            table = insert(table, tokens, jnp.full((2,), 6, jnp.int32) * step)
            root = tokens.at[:, 6 * step].get(mode="clip")
            candidates = [
                ((root[:, None] + jnp.arange(1, width + 1, dtype=jnp.int32)[None]) % 4, log_probs[:, :width])
                for width in shape.widths
            ]
            chains = ngram.lookup(table, candidates[0][0], shape.ngram_k)
            tree = build(shape, root, shared_levels(shape, candidates), chains)
            result = accept(tree, (tree.tokens + 1) % 4, shape.depth)
            return step + 1, table, total * 3 + jnp.sum(result.emitted, axis=-1, dtype=jnp.int32)

        start = (jnp.int32(0), ngram.empty(2, 64, 8), jnp.zeros((2,), jnp.int32))
        return jax.jit(lambda: jax.lax.while_loop(lambda state: state[0] < 9, body, start))()

    _, _, narrow = run(jnp.float32, functools.partial(ngram.insert, most=6))
    with jax.enable_x64(True):
        _, table, wide = run(jnp.float64, ngram_fill.fill)
    assert wide.dtype == table.entries.dtype == table.inserted.dtype == jnp.int32
    np.testing.assert_array_equal(narrow, wide)
