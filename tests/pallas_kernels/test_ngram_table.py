"""The n-gram table's GPU kernel against its definition, bit for bit; the text past its length is garbage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import calls_a_kernel

from pallas_kernels.implementation import compiling_for
from pallas_kernels.ngram_table import ngram_update
from pallas_kernels.ngram_table.sets import FIELDS

BATCH, CAPACITY, MOST, K = 3, 64, 5, 3


@functools.partial(jax.jit, static_argnames=("way", "k"))
def updated(entries, inserted, tokens, eligible, key, *, way, k):
    with compiling_for(way, interpret=way != "reference"):
        return ngram_update(entries, inserted, tokens, eligible, most=MOST, key=key, k=k)


@pytest.mark.parametrize(("slots", "sets", "alphabet"), [(4, 3, 9), (1, 2, 3), (8, 1, 4)])
def test_the_kernel_is_the_definition(slots, sets, alphabet):
    """Ties, evictions, repeated 4-grams and sets without room are the rule on such alphabets."""
    rng = np.random.default_rng(slots)
    text = rng.integers(0, alphabet, (BATCH, CAPACITY))
    text[0, : CAPACITY // 2] = 1  # one 4-gram again and again: several insertions of a call take one entry
    table = jnp.zeros((BATCH, sets, 2 * slots * FIELDS), jnp.int32), jnp.zeros(BATCH, jnp.int32)
    other = table
    length = np.zeros(BATCH, np.int64)
    for call in range(24):
        length = np.minimum(length + rng.integers(0, MOST + 2, BATCH), CAPACITY)
        unread = np.where(np.arange(CAPACITY) < length[:, None], text, rng.integers(-(2**31), 2**31, text.shape))
        given = jnp.asarray(unread, jnp.int32), jnp.asarray(length - (call == 0), jnp.int32)
        key = jnp.asarray(rng.integers(0, alphabet + 1, (BATCH, 2)), jnp.int32)
        *table, best = updated(*table, *given, key, way="reference", k=K)
        *other, same = updated(*other, *given, key, way="gpu", k=K)
        np.testing.assert_array_equal(np.stack(best), np.stack(same))
        for one, two in zip(table, other, strict=True):
            np.testing.assert_array_equal(one, two)
    assert np.count_nonzero(table[0])
    assert np.stack(best).any()


def test_without_a_key_it_inserts_alone():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, (BATCH, CAPACITY)), jnp.int32)
    entries, none = jnp.zeros((BATCH, 2, 8 * FIELDS), jnp.int32), jnp.zeros(BATCH, jnp.int32)
    given = entries, none, tokens, jnp.asarray([0, 5, 60], jnp.int32), None
    done, same = (updated(*given, way=way, k=0) for way in ("reference", "gpu"))
    assert done.best is None
    assert same.best is None
    np.testing.assert_array_equal(done.entries, same.entries)
    np.testing.assert_array_equal(done.inserted, [0, 5, 8])
    np.testing.assert_array_equal(same.inserted, done.inserted)


@pytest.mark.parametrize(("words", "kernel"), [(384, True), (360, False), (1536, False)])
def test_the_sizes_that_the_kernel_takes(words, kernel):
    shapes = (1, 7, words), (1,), (1, 128), (1,), (1, 1)
    given = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    update = functools.partial(ngram_update, most=4, k=20)
    assert calls_a_kernel("gpu", lambda *a: update(*a[:4], key=a[4]), *given) == kernel
