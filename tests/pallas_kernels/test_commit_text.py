"""The end of an iteration: its GPU kernel against the definition, bit for bit; scratch and invalid rows are garbage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import calls_a_kernel

from pallas_kernels.commit_text import Ends, Text, TreeRows, commit_text
from pallas_kernels.implementation import compiling_for

VOCAB, CAPACITY, BATCH = 70, 48, 24
REASONS = 1, 2, 3


def case(rows, depth, seed):
    """Random trees whose draws mostly follow some path, with now and then an EOS, a row without a draw, a text that
    has ended, and one near its stop length."""
    rng = np.random.default_rng(seed)
    shape = BATCH, rows
    tokens, parents, depths = (np.zeros(shape, np.int32) for _ in range(3))
    valid, mask = np.zeros(shape, bool), np.broadcast_to(np.eye(rows, dtype=bool), (*shape, rows)).copy()
    draws = rng.integers(0, 6, shape)
    for text in range(BATCH):
        valid[text, 0] = True
        for row in range(1, rows):
            parent = rng.integers(max(0, row - 3), row)
            if valid[text, parent] and depths[text, parent] < depth and rng.random() < 0.9:
                taken = tokens[text][valid[text] & (parents[text] == parent) & (np.arange(rows) > 0)]
                token = draws[text, parent] if draws[text, parent] not in taken else 6 + row
                tokens[text, row], parents[text, row], depths[text, row] = token, parent, depths[text, parent] + 1
                valid[text, row] = True
                mask[text, row] |= mask[text, parent]
    draws = np.where(valid, draws, rng.integers(0, VOCAB, shape))
    length = rng.integers(3, CAPACITY - depth - 2, BATCH)
    text = rng.integers(-(2**31), 2**31, (BATCH, CAPACITY))
    last_positions = np.where(rng.random((BATCH, VOCAB)) < 0.5, rng.integers(0, 3, (BATCH, VOCAB)), -(2**31))
    eos = np.zeros((BATCH, -(-VOCAB // 32)), np.uint32)
    eos[: BATCH // 3, 0] = 1 << 4
    stop = length + 1 + np.where(rng.random(BATCH) < 0.3, rng.integers(1, depth + 2, BATCH), 40)
    integers = [jnp.asarray(x, jnp.int32) for x in (tokens, parents, depths)]
    no_draw = jnp.asarray(rng.random(shape) < 0.05)
    tree = TreeRows(*integers, jnp.asarray(valid), jnp.asarray(mask), jnp.asarray(draws, jnp.int32), no_draw)
    finish = jnp.asarray(np.where(rng.random(BATCH) < 0.2, 2, 0), jnp.int32)
    of_text = [jnp.asarray(x, jnp.int32) for x in (text, length)]
    return tree, Text(*of_text, finish, jnp.asarray(last_positions, jnp.int32)), jnp.asarray(stop, jnp.int32), eos


@functools.partial(jax.jit, static_argnames=("way", "depth"))
def committed(tree, text, stop, eos, *, way, depth):
    with compiling_for(way, interpret=way != "reference"):
        return with_ends(depth, tree, text, stop, eos)


@pytest.mark.parametrize(("rows", "depth"), [(1, 0), (7, 3), (16, 4), (33, 5)])
def test_the_kernel_is_the_definition(rows, depth):
    given = case(rows, depth, rows)
    found, expected = (committed(*given, way=way, depth=depth) for way in ("gpu", "reference"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    finish, count, accepted = (np.asarray(x) for x in (found.text.finish, found.count, found.acceptance.accepted))
    assert set(finish.tolist()) == {0, 1, 2, 3}
    assert len(set(accepted.tolist())) > min(depth, 2)
    assert len(set(count.tolist())) > min(depth, 2)
    assert not count[np.asarray(given[1].finish) > 0].any()


def test_the_shapes_that_the_kernel_takes():
    for rows, kernel in ((1, True), (64, True), (128, True), (129, False)):
        depth = min(rows - 1, 5)
        given = jax.eval_shape(lambda rows=rows: tuple(map(jnp.asarray, case_shapes(rows))))
        tree, text = TreeRows(*given[:7]), Text(*given[7:11])
        ended = functools.partial(with_ends, depth)
        assert calls_a_kernel("gpu", ended, tree, text, *given[11:]) == kernel


def with_ends(depth, tree, text, stop, eos):
    return commit_text(tree, text, Ends(stop, eos, REASONS), depth)


def case_shapes(rows):
    flat, flags = np.zeros((1, rows), np.int32), np.zeros((1, rows), bool)
    one, mask = np.zeros(1, np.int32), np.zeros((1, rows, rows), bool)
    text = np.zeros((1, 256), np.int32), one, one, np.zeros((1, VOCAB), np.int32)
    return flat, flat, flat, flags, mask, flat, flags, *text, one, np.zeros((1, 3), np.uint32)
