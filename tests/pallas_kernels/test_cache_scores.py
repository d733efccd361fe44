"""The best-scoring cached positions against NumPy float64; slots that are not eligible hold NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.cache_scores import top_positions

LAYERS, LAYER, KV_HEADS, HEAD_DIM = 2, 1, 2, 8
CAPACITY = 2304  # no multiple of 1024


@partial(jax.jit, static_argnames="count")
def run(query, keys, begins, ends, count):
    return top_positions(query, keys, layer=LAYER, begins=begins, ends=ends, count=count)


def make(rng, begins, ends, *, group, draw, dtype="float32"):
    """Query, keys and the float64 scores [batch, kv_heads, capacity], -inf where not eligible."""
    batch = len(begins)
    query = draw(rng, (batch, KV_HEADS * group, HEAD_DIM))
    keys = np.full((LAYERS, batch, KV_HEADS, CAPACITY, HEAD_DIM), np.nan)
    scores = np.full((batch, KV_HEADS, CAPACITY), -np.inf)
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        keys[LAYER, row, :, begin:end] = draw(rng, (KV_HEADS, max(end - begin, 0), HEAD_DIM))
    query, keys = jnp.asarray(query, dtype), jnp.asarray(keys, dtype)
    wide_query, wide_keys = (np.asarray(x).astype(np.float64) for x in (query, keys))
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        for head in range(KV_HEADS):
            of_head = wide_query[row, head * group : (head + 1) * group]
            scores[row, head, begin:end] = (wide_keys[LAYER, row, head, begin:end] @ of_head.T).sum(axis=1)
    return query, keys, scores


def normal(rng, shape):
    return rng.normal(size=shape)


def small_integers(rng, shape):
    return rng.integers(-2, 3, shape)


def chosen(query, keys, begins, ends, count):
    return np.asarray(run(query, keys, jnp.asarray(begins, jnp.int32), jnp.asarray(ends, jnp.int32), count))


@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        ([16, 16, 16], [2304, 300, 1025]),
        ([0, 1024, 1023], [1024, 2048, 1025]),
        ([2000, 0, 2303], [2304, 2, 2304]),
    ],
)
def test_descending_scores(begins, ends, group):
    """Where fewer are eligible than asked for, the rest is -1."""
    query, keys, scores = make(np.random.default_rng(group), begins, ends, group=group, draw=normal)
    positions = chosen(query, keys, begins, ends, 40)
    for row in range(3):
        for head in range(KV_HEADS):
            order = np.argsort(-scores[row, head], kind="stable")
            expected = np.where(np.isfinite(scores[row, head, order]), order, -1)[:40]
            # normal draws: no two scores of these seeds are closer than float32 can tell
            np.testing.assert_array_equal(positions[row, head], expected)


def test_ties_keep_distinct_eligible_positions_with_the_best_scores():
    """Small integers make scores exact and ties many: which of equals is chosen is open, their scores are not."""
    begins, ends = [3, 16, 0], [2304, 1500, 700]
    query, keys, scores = make(np.random.default_rng(7), begins, ends, group=2, draw=small_integers)
    positions = chosen(query, keys, begins, ends, 100)
    for row in range(3):
        for head in range(KV_HEADS):
            best = np.sort(scores[row, head])[::-1][:100]
            assert len(np.unique(best)) < 60
            assert len(np.unique(positions[row, head])) == 100
            np.testing.assert_array_equal(scores[row, head, positions[row, head]], best)


def test_nothing_eligible():
    begins, ends = [16, 40, 0], [16, 30, 0]
    query, keys, _ = make(np.random.default_rng(8), begins, ends, group=1, draw=normal)
    assert (chosen(query, keys, begins, ends, 5) == -1).all()


def test_more_asked_for_than_a_block_or_the_cache_holds():
    begins, ends = [0, 100], [2304, 2000]
    query, keys, scores = make(np.random.default_rng(9), begins, ends, group=2, draw=normal)
    positions = chosen(query, keys, begins, ends, 2400)
    for row in range(2):
        for head in range(KV_HEADS):
            eligible = np.arange(begins[row], ends[row])
            np.testing.assert_array_equal(np.sort(positions[row, head])[2400 - len(eligible) :], eligible)
            assert (positions[row, head, len(eligible) :] == -1).all()
            # of two thousand scores some are closer than float32's rounding of 1e-5
            assert np.diff(scores[row, head, positions[row, head, : len(eligible)]]).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_are_scored_at_float32_or_wider(dtype):
    """A product of two bfloat16 fits float32, so only sums round, by 1e-5 at most."""
    begins, ends = [16, 16], [2304, 1100]
    with jax.enable_x64(dtype == "float64"):
        query, keys, scores = make(np.random.default_rng(10), begins, ends, group=4, draw=normal, dtype=dtype)
        positions = chosen(query, keys, begins, ends, 64)
    for row in range(2):
        for head in range(KV_HEADS):
            actual = scores[row, head, positions[row, head]]
            np.testing.assert_allclose(actual, np.sort(scores[row, head])[::-1][:64], rtol=0, atol=1e-5)
