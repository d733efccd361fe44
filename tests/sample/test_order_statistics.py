"""Thresholds are the same bits however many of them a pass settles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.order_statistics import FEW_PASSES, ONE_BIT, kth_largest, nucleus_edge

SEARCHES = (ONE_BIT, FEW_PASSES)
VOCAB = 83


def scores_of(dtype):
    """Rows of ordinary scores, of ties, around 0 with both signs, of extremes, mostly filtered, all filtered."""
    rng = np.random.default_rng(0)
    rows = rng.normal(scale=3, size=(6, VOCAB))
    rows[1] = np.round(rows[1])
    rows[2] *= 1e-30
    rows[2, ::7] = -0.0
    rows[3] = rng.choice([-1.0, 1.0], VOCAB) * np.exp(rng.uniform(-60, 80, VOCAB))
    rows[4, rng.permutation(VOCAB)[3:]] = -np.inf
    rows[5] = -np.inf
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_search_does_not_change_the_answer(dtype):
    with jax.enable_x64(dtype is np.float64):
        rows = scores_of(dtype)
        scores = jnp.asarray(rows)

        def found(k, top_p):
            highest = jnp.max(scores, axis=-1, keepdims=True)
            edges = []
            for search in SEARCHES:
                least = kth_largest(scores, k, search)
                edges += [least, nucleus_edge(scores, highest, least, top_p.astype(dtype), search)]
            return edges

        found = jax.jit(found)
        for k, top_p in ((1, 0.01), (5, 0.5), (40, 0.9), (VOCAB, 1.0), (VOCAB + 9, 0.999)):
            edges = found(jnp.int32(k), jnp.asarray(top_p, dtype))
            np.testing.assert_array_equal(edges[0][:, 0], np.sort(rows)[:, -min(k, VOCAB)])
            np.testing.assert_array_equal(edges[2], edges[0])
            np.testing.assert_array_equal(edges[3], edges[1])
            # The nucleus lies among the k best; row 5 has none, its weights are NaN and its edge is not asked for.
            assert (np.asarray(edges[1])[:5] >= np.asarray(edges[0])[:5]).all()
