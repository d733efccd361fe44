"""The penalty's window against Python sets: whole texts, growing texts, rows of a tree, finished texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.commit_text.reference import newest_positions
from tokenswift_jax.sample.penalty import last_positions, row_penalised, text_penalised

VOCAB, CAPACITY, BATCH = 7, 24, 2
WHOLE_TEXT = 2**31 - 1
WINDOWS = st.sampled_from([1, 2, 3, 5, 10, CAPACITY, WHOLE_TEXT])

last_of = jax.jit(last_positions, static_argnums=2)
grown = jax.jit(newest_positions, static_argnums=4)
rows_of = jax.jit(row_penalised)
text_of = jax.jit(text_penalised)


def _tokens(seed):
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, CAPACITY))


def _int32(x):
    return jnp.asarray(x, jnp.int32)


def _window_of(text, window):
    """[vocab] bool: the tokens in the newest `window` positions of a list."""
    newest = text[-window:] if window < len(text) else text
    return np.isin(np.arange(VOCAB), newest)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), lengths=st.tuples(*[st.integers(0, CAPACITY)] * BATCH))
def test_last_positions(seed, lengths):
    tokens = _tokens(seed)
    last = np.asarray(last_of(_int32(tokens), _int32(lengths), VOCAB))
    for row, length in enumerate(lengths):
        for token in range(VOCAB):
            found = np.flatnonzero(tokens[row, :length] == token)
            assert last[row, token] == (found[-1] if len(found) else -(2**31))


def test_what_lies_behind_the_text_is_never_read():
    tokens = _int32([[3, 4, 5, 9, -1, 2**31 - 1]])
    last = np.asarray(last_of(tokens, _int32([3]), VOCAB))
    assert [v for v in range(VOCAB) if last[0, v] >= 0] == [3, 4, 5]
    penalised = rows_of(_int32(last), _int32([3]), _int32([[[-1, 99]]]), _int32([[0]]), _int32([2]))
    assert np.flatnonzero(penalised[0, 0]).tolist() == [4, 5]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), steps=st.lists(st.tuples(*[st.integers(0, 4)] * BATCH), max_size=5))
def test_advance_equals_a_recount(seed, steps):
    tokens = _int32(_tokens(seed))
    length = np.array([1, 3])
    last = last_of(tokens, _int32(length), VOCAB)
    for step in steps:
        after = length + step
        last = grown(last, tokens, _int32(length), _int32(after), 4)
        length = after
    np.testing.assert_array_equal(last, last_of(tokens, _int32(length), VOCAB))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    lengths=st.tuples(*[st.integers(1, CAPACITY)] * BATCH),
    depths=st.lists(st.integers(0, 4), min_size=BATCH * 5, max_size=BATCH * 5),
    window=WINDOWS,
)
def test_rows_see_the_window_of_their_own_path(seed, lengths, depths, window):
    tokens = _tokens(seed)
    depths = np.array(depths).reshape(BATCH, 5)
    paths = np.random.default_rng(seed + 1).integers(0, VOCAB, (BATCH, 5, 4))
    last = last_of(_int32(tokens), _int32(lengths), VOCAB)
    penalised = rows_of(last, _int32(lengths), _int32(paths), _int32(depths), jnp.full(len(lengths), window, jnp.int32))
    assert penalised.dtype == jnp.bool_
    for b in range(BATCH):
        for r in range(5):
            text = [*tokens[b, : lengths[b]], *paths[b, r, : depths[b, r]]]
            np.testing.assert_array_equal(penalised[b, r], _window_of(text, window))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), start=st.tuples(*[st.integers(0, CAPACITY - 8)] * BATCH), window=WINDOWS)
def test_consecutive_positions_of_a_text(seed, start, window):
    tokens = _tokens(seed)
    chunk = np.stack([tokens[b, start[b] : start[b] + 8] for b in range(BATCH)])
    last = last_of(_int32(tokens), _int32(start), VOCAB)
    penalised, after = text_of(last, _int32(chunk), _int32(start), jnp.full(len(start), window, jnp.int32))
    for b in range(BATCH):
        for i in range(8):
            np.testing.assert_array_equal(penalised[b, i], _window_of(list(tokens[b, : start[b] + i]), window))
    np.testing.assert_array_equal(after, last_of(_int32(tokens), _int32(np.add(start, 8)), VOCAB))


@pytest.mark.parametrize("window", [1, 4, WHOLE_TEXT])
def test_a_tree_row_equals_plain_decoding_of_its_path(window):
    """A row at depth t penalises what the root penalises once the path has been emitted."""
    tokens, path = _tokens(5), np.array([2, 2, 6])
    length = np.array([6, 9])
    last = last_of(_int32(tokens), _int32(length), VOCAB)
    paths = np.broadcast_to(path, (BATCH, 1, 3))
    for t in range(4):
        row = rows_of(last, _int32(length), _int32(paths), _int32([[t]] * BATCH), _int32([window] * BATCH))
        emitted = tokens.copy()
        for b in range(BATCH):
            emitted[b, length[b] : length[b] + t] = path[:t]
        plain = last_of(_int32(emitted), _int32(length + t), VOCAB)
        no_path = jnp.zeros((BATCH, 1, 0), jnp.int32)
        root = rows_of(plain, _int32(length + t), no_path, _int32([[0]] * BATCH), _int32([window] * BATCH))
        np.testing.assert_array_equal(row, root)


def test_without_a_path_there_is_nothing_but_a_comparison():
    """Autoregressive decoding pays one comparison a token, no scatter and no recount."""
    shapes = (
        jax.ShapeDtypeStruct((1, VOCAB), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 1, 0), jnp.int32),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    equations = jax.make_jaxpr(row_penalised)(*shapes).jaxpr.eqns
    assert {str(equation.primitive) for equation in equations} <= {
        "broadcast_in_dim",
        "reshape",
        "add",
        "sub",
        "ge",
        "iota",
        "jit",
    }


def test_advance_in_a_while_loop():
    tokens = _int32(_tokens(8))

    def body(state):
        last, length = state
        return newest_positions(last, tokens, length, length + 2, 3), length + 2

    start = (last_of(tokens, _int32([2, 5]), VOCAB), _int32([2, 5]))
    last, length = jax.jit(lambda s: jax.lax.while_loop(lambda s: s[1][0] < 12, body, s))(start)
    np.testing.assert_array_equal(last, last_of(tokens, length, VOCAB))
