"""The searches of a shortlist against a NumPy sort, by every implementation; rows do not depend on their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.implementation import compiling_for
from pallas_kernels.order_statistics import FEW_PASSES, ONE_BIT
from pallas_kernels.shortlist_edges import shortlist_edges

COUNT = 128
KEEP = np.array([1, 1, 3, 1, 7, 1, 2, 1])
TOP_K = np.array([0, 5, 0, 20, 2, 0, 200, 1])
TOP_P = np.array([1.0, 1.0, 0.9, 0.5, 0.3, 0.99, 0.8, 0.0])
SHARES = np.array([[0.25, 0.5, 0.0, 0.25]], np.float32)  # of a row's weight, in its parts
WAYS = {"bit by bit": ("reference", ONE_BIT), "few passes": ("reference", FEW_PASSES), "gpu": ("gpu", ONE_BIT)}


def rows():
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=3, size=(len(KEEP), COUNT)).astype(np.float32)
    scores[3] = np.round(scores[3])  # ties
    scores[4, 3:] = -np.inf
    scores[5, ::2] *= -1
    return scores


def found(way, scores, chosen=slice(None), total=None):
    name, search = WAYS[way]
    total = 1.5 * weights(scores).sum(axis=1) if total is None else total
    settings = [scores.max(axis=1), KEEP.astype(np.int32), TOP_K.astype(np.int32), TOP_P.astype(np.float32), total]
    given = [jnp.asarray(values[chosen, None]) for values in settings[1:4]]
    highest, total = (jnp.asarray(np.asarray(values, np.float32)[chosen, None]) for values in (settings[0], total))
    parts = total * jnp.asarray(SHARES)
    with compiling_for(name, interpret=name != "reference"):
        edges = jax.jit(lambda *given: shortlist_edges(*given, search))(
            jnp.asarray(scores[chosen]), highest, *given, parts
        )
    return [np.asarray(edge)[:, 0] for edge in edges]


def weights(scores):
    return np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))


@pytest.mark.parametrize("way", list(WAYS))
def test_edges_are_those_of_a_sort(way):
    scores = rows()
    floor, counted, nucleus = found(way, scores)
    ordered = -np.sort(-scores, axis=1)
    for row, (keep, k, p) in enumerate(zip(KEEP, TOP_K, TOP_P, strict=True)):
        assert floor[row] == ordered[row, keep - 1]
        assert counted[row] == (ordered[row, min(max(k, keep), COUNT) - 1] if k else -np.inf)
        if p == 1:
            assert nucleus[row] == counted[row]
            continue
        own = np.where(scores[row] >= counted[row], weights(scores)[row], 0)
        target = p * (own.sum() if k else 1.5 * own.sum())
        enough = [t for t in ordered[row] if own[scores[row] >= t].sum() >= target and own[scores[row] >= t].sum() > 0]
        assert nucleus[row] == (max(enough) if enough else ordered[row, -1]), row


def test_the_kernel_gives_a_row_alone_what_it_gives_among_others():
    scores = rows()
    total = 1.5 * weights(scores).sum(axis=1)
    together = found("gpu", scores, total=total)
    for row in range(len(KEEP)):
        alone = found("gpu", scores, slice(row, row + 1), total)
        np.testing.assert_array_equal([edge[0] for edge in alone], [edge[row] for edge in together])


@pytest.mark.parametrize("name", ["reference", "gpu"])
def test_rows_of_a_text_share_its_settings(name):
    scores = jnp.asarray(rows())
    highest = scores.max(axis=1, keepdims=True)
    of_texts = [jnp.asarray([[value], [other]]) for value, other in ((1, 3), (5, 0))] + [jnp.float32([[0.9], [0.5]])]
    of_rows = [jnp.repeat(values, 4, axis=0) for values in of_texts]
    with compiling_for(name, interpret=name != "reference"):
        shared, own = (shortlist_edges(scores, highest, *given, highest, ONE_BIT) for given in (of_texts, of_rows))
    jax.tree.map(np.testing.assert_array_equal, shared, own)
    assert (np.asarray(own[1]) > -np.inf).ravel().tolist() == [True] * 4 + [False] * 4


def test_a_float64_row_is_searched_by_the_reference():
    with jax.enable_x64(True), compiling_for("gpu", interpret=True):
        one = jnp.ones((1, 1), jnp.float64)
        given = one, jnp.ones((1, 1), jnp.int32), jnp.full((1, 1), 2, jnp.int32), one, one
        edges = shortlist_edges(jnp.asarray([[3.0, 2.0 + 1e-12, 1.0, 2.0]]), *given, ONE_BIT)
        assert float(edges[1][0, 0]) == 2.0 + 1e-12
