"""Thresholds found among a row's few highest scores are those found among all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.implementation import compiling_for
from pallas_kernels.order_statistics import FEW_PASSES, ONE_BIT, kth_largest, nucleus_edge
from tests.engine_fixture import settings_of
from tokenswift_jax.sample import filters as filters_module
from tokenswift_jax.sample.block_topk import BLOCKS, WIDTH, is_profitable, search_whole, shortlist
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.filters import FilterParams, threshold
from tokenswift_jax.sample.processors import process
from tokenswift_jax.sampling import SamplingConfig

VOCAB = 8 * BLOCKS * WIDTH + 7  # no multiple of a block's width


def rows_of_scores():
    """A text's spread, a flat row, ties, all that is high in one block's tokens, three left, one left."""
    rng = np.random.default_rng(0)
    rows = rng.normal(scale=3, size=(6, VOCAB))
    rows[0] *= 2
    rows[1] /= 1e4
    rows[2] = np.round(rows[2])
    stride = -(-VOCAB // WIDTH)
    rows[3, 5::stride] += 40
    rows[4, rng.permutation(VOCAB)[3:]] = -np.inf
    rows[5, 1:] = -np.inf
    return rows.astype(np.float32)


def processed(config, rows):
    run = jax.jit(process, static_argnames="features")
    return np.asarray(
        run(
            jnp.asarray(rows)[None],
            penalised=jnp.zeros((1, 1, VOCAB), bool),
            generated=jnp.zeros((1, len(rows)), jnp.int32),
            settings=settings_of(config, vocab=VOCAB, batch=1),
            features=features_of(config),
        )[0]
    )


@pytest.mark.parametrize(
    "asked",
    [
        *({"top_k": k} for k in (1, 50, BLOCKS, BLOCKS + 1, 5000, VOCAB + 1)),
        *({"top_p": p} for p in (1e-9, 0.5, 0.95, 0.9999)),
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 4000, "top_p": 0.8},
        {"top_p": 0.1, "min_tokens_to_keep": 12},
        {"top_k": 3, "min_tokens_to_keep": 9, "min_p": 0.2},
        {"top_k": 300, "eta_cutoff": 0.02},
    ],
    ids=str,
)
def test_a_shortlist_does_not_change_what_is_kept(asked, monkeypatch):
    config, rows = SamplingConfig(**asked), rows_of_scores()
    actual = processed(config, rows)
    monkeypatch.setattr(filters_module, "is_profitable", lambda vocab: False)
    np.testing.assert_array_equal(actual, processed(config, rows))


@pytest.mark.parametrize("vocab", [VOCAB, 32000])
def test_a_gpu_keeps_what_a_search_of_all_scores_keeps(vocab):
    """Two texts with settings of their own: the kernel adds the parts of a row's weight. It serves Llama 2's vocabulary
    too, whose rows other devices search as they are."""
    scores = jnp.asarray(rows_of_scores()[:, :vocab]).reshape(2, 3, vocab)
    asked = [SamplingConfig(top_p=0.95), SamplingConfig(top_k=20, top_p=0.8, min_tokens_to_keep=2)]
    filters = [FilterParams.of(settings_of(config, vocab=VOCAB, batch=1), scores.dtype) for config in asked]
    both = jax.tree.map(lambda *values: jnp.concatenate(values), *filters)
    with compiling_for("gpu", interpret=True):
        assert is_profitable(vocab)
        found = jax.jit(lambda *given: threshold(*given, search=FEW_PASSES, listed=True))(scores, both)
    np.testing.assert_array_equal(found, threshold(scores, both, search=ONE_BIT, listed=False))


def test_which_answers_are_exact():
    """Any k up to BLOCKS is; beyond, as much as the list happens to hold; a nucleus, where it is no larger."""
    assert is_profitable(VOCAB)
    rows = rows_of_scores()
    few = shortlist(jnp.asarray(rows))
    ordered = -np.sort(-rows, axis=-1)
    stored = (rows > np.asarray(few.guaranteed_above)).sum(axis=-1)
    assert (stored[:2] >= BLOCKS - 1).all()
    assert (stored[:2] < 2 * BLOCKS).all()
    for k in (1, BLOCKS, BLOCKS + 60, 3000):
        found = np.asarray(kth_largest(few.scores, jnp.int32(k), ONE_BIT))[:, 0]
        exact = found >= np.asarray(few.guaranteed_above)[:, 0]
        assert exact.all() if k <= BLOCKS else not exact[1]
        np.testing.assert_array_equal(found[exact], ordered[exact, k - 1])
    weights = np.exp(rows - ordered[:, :1])
    total = jnp.asarray(weights.sum(axis=-1, keepdims=True))
    everything = jnp.full((6, 1), -jnp.inf)
    edge = np.asarray(nucleus_edge(few.scores, few.highest, everything, jnp.float32(0.8), ONE_BIT, total))[:, 0]
    exact = edge > np.asarray(few.guaranteed_above)[:, 0]
    np.testing.assert_array_equal(exact, [True, False, False, True, True, True])
    mass = np.where(rows >= edge[:, None], weights, 0).sum(axis=-1) / weights.sum(axis=-1)
    above = np.where(rows > edge[:, None], weights, 0).sum(axis=-1) / weights.sum(axis=-1)
    assert (mass[exact] >= 0.8).all()
    assert (above[exact] < 0.8).all()


@pytest.mark.parametrize(("undecided", "together", "turns"), [(0, 2, 0), (3, 1, 3), (5, 2, 3), (5, 3, 2), (7, 99, 1)])
def test_only_undecided_rows_are_searched(undecided, together, turns):
    """So many at a time; what was exact stays as it was found."""
    rng = np.random.default_rng(undecided)
    scores = rng.normal(size=(1, 7, 30)).astype(np.float32)
    exact = np.ones((1, 7, 1), bool)
    exact[0, rng.permutation(7)[:undecided]] = False
    searched = []

    def highest_and_lowest(rows, shift):
        jax.debug.callback(lambda rows: searched.append(rows.shape[0]), rows)
        return jnp.max(rows, axis=-1, keepdims=True) + shift, jnp.min(rows, axis=-1, keepdims=True)

    found = jnp.full((1, 7, 1), 5.0), jnp.full((1, 7, 1), -5.0)
    shift = jnp.arange(7.0)[None, :, None]  # each row's own parameter goes with it
    run = jax.jit(lambda *given: search_whole(highest_and_lowest, *given, together * 30))
    high, low = run(scores, shift, found, exact)
    jax.effects_barrier()
    np.testing.assert_array_equal(high, np.where(exact, 5, scores.max(axis=-1, keepdims=True) + np.asarray(shift)))
    np.testing.assert_array_equal(low, np.where(exact, -5, scores.min(axis=-1, keepdims=True)))
    assert searched == [min(together, 7)] * turns


def test_a_row_is_its_own():
    """A flat row beside it, for which all scores are searched, changes nothing of a row that its few decide."""
    config, rows = SamplingConfig(top_p=0.9), rows_of_scores()
    together = processed(config, rows)
    np.testing.assert_array_equal(processed(config, rows[3:4]), together[3:4])
    np.testing.assert_array_equal(processed(config, rows[[0, 3]]), together[[0, 3]])
