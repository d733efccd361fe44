"""The processors against a NumPy float64 oracle that sorts, ties included; draws and candidates against argsort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from pallas_kernels.order_statistics import kth_largest
from tests.engine_fixture import settings_of
from tokenswift_jax.errors import UserError
from tokenswift_jax.request import Request
from tokenswift_jax.sample import draw as draw_module
from tokenswift_jax.sample.draw import draw, top_candidates
from tokenswift_jax.sample.features import SamplingFeatures, features_for, features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sample.processors import process
from tokenswift_jax.sampling import SamplingConfig

VOCAB = 37
EOS = (5, 6)
# One of each flag alone and the combinations people use; few, because each is a compilation.
ASKED = (
    {"temperature": 0.0, "repetition_penalty": 2.0, "top_k": 3},
    {"top_k": 4},
    {"top_p": 0.83},
    {"min_p": 0.07},
    {"eta_cutoff": 0.013},
    {"top_k": 9, "top_p": 0.71, "repetition_penalty": 0.5},
    {"min_p": 0.013, "repetition_penalty": 2.0, "temperature": 0.5},
    {"top_p": 0.71, "min_tokens_to_keep": 6},
    {"top_k": 20, "top_p": 0.93, "min_p": 0.013, "eta_cutoff": 0.0013, "min_tokens_to_keep": 3, "temperature": 2.0},
)

run = jax.jit(process, static_argnames="features")


def _softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def oracle(logits, config, penalised, forbidden, wiggle=0.0):
    """One row of scores by sorting, in float64; `wiggle` moves every probability threshold by that fraction."""
    x = np.asarray(logits, np.float64).copy()
    x[forbidden] = -np.inf
    theta = config.repetition_penalty
    x = np.where(penalised, np.where(x < 0, x * theta, x / theta), x)
    if config.temperature == 0:
        return x
    x = x / config.temperature
    floor = np.sort(x)[-min(config.min_tokens_to_keep, len(x))]
    if config.top_k is not None:
        k = min(max(config.top_k, config.min_tokens_to_keep), len(x))
        x = np.where(x < np.sort(x)[-k], -np.inf, x)
    if config.top_p is not None:
        p = _softmax(x)
        above = np.array([p[x > value].sum() for value in x])
        x = np.where((above >= config.top_p * (1 + wiggle)) & (x < floor), -np.inf, x)
    if config.min_p is not None:
        p = _softmax(x)
        x = np.where((p < config.min_p * (1 + wiggle) * p.max()) & (x < floor), -np.inf, x)
    if config.eta_cutoff is not None:
        p = _softmax(x)
        entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
        eta = min(config.eta_cutoff, np.sqrt(config.eta_cutoff) * np.exp(-entropy)) * (1 + wiggle)
        x = np.where((p < eta) & (x < floor), -np.inf, x)
    return x


def _call(logits, config, penalised, generated, min_new_tokens=0):
    batch, _, vocab = logits.shape
    settings = settings_of(config, vocab=vocab, batch=batch, eos_ids=EOS, min_new_tokens=min_new_tokens)
    features = features_of(config)
    if penalised is None:
        penalised = np.zeros((1, 1, vocab), bool)
    return np.asarray(
        run(
            jnp.asarray(logits),
            penalised=jnp.asarray(penalised),
            generated=jnp.asarray(generated, jnp.int32),
            settings=settings,
            features=features,
        )
    )


def _check(seed, asked, dtype, tied):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(2, 3, VOCAB))
    # Quarters and a theta, temperature of powers of two: equal in float64 is equal in float32.
    logits = (np.round(logits * 4) / 4 if tied else logits).astype(dtype)
    penalised = rng.random((2, 3, VOCAB)) < 0.3
    generated = rng.integers(0, 6, (2, 3))
    config = SamplingConfig(**asked, suppress_tokens=(0, 11))
    scores = _call(logits, config, penalised, generated, min_new_tokens=3)
    assert scores.dtype == dtype
    # Probabilities of either precision lie within this of the exact ones; a token closer to a threshold is no test.
    wiggle = 1e-5 if dtype == np.float32 else 1e-13
    for b, r in np.ndindex(2, 3):
        forbidden = [0, 11, *(EOS if generated[b, r] < 3 else ())]
        row = (logits[b, r], config, penalised[b, r] & (config.repetition_penalty != 1), forbidden)
        expected = oracle(*row)
        kept = np.isfinite(expected)
        assume(all((np.isfinite(oracle(*row, wiggle=w)) == kept).all() for w in (wiggle, -wiggle)))
        np.testing.assert_array_equal(np.isfinite(scores[b, r]), kept)
        np.testing.assert_allclose(scores[b, r][kept], expected[kept], rtol=wiggle / 10)


@settings(max_examples=90, deadline=None)
@given(seed=st.integers(0, 10**6), asked=st.sampled_from(ASKED), tied=st.booleans())
def test_equals_the_sorting_oracle(seed, asked, tied):
    _check(seed, asked, np.float32, tied)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), asked=st.sampled_from((ASKED[0], ASKED[-1])), tied=st.booleans())
def test_equals_the_sorting_oracle_in_float64(seed, asked, tied):
    with jax.enable_x64(True):
        _check(seed, asked, np.float64, tied)


def test_bfloat16_logits_are_processed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, VOCAB)), jnp.bfloat16)
    assert _call(logits, SamplingConfig(top_p=0.5), None, [[0]]).dtype == np.float32


@pytest.mark.parametrize("asked", [ASKED[0], ASKED[5], ASKED[-1]])
@pytest.mark.parametrize("vocab", [1001, 2048])
def test_a_row_does_not_depend_on_the_others(asked, vocab):
    """Bit for bit, so that a tree of any size draws what plain decoding draws."""
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=3, size=(2, 5, vocab)).astype(np.float32)
    penalised = rng.random((2, 5, vocab)) < 0.1
    config = SamplingConfig(**asked)
    together = _call(logits, config, penalised, np.zeros((2, 5)))
    for b, r in np.ndindex(2, 5):
        alone = _call(logits[b : b + 1, r : r + 1], config, penalised[b : b + 1, r : r + 1], np.zeros((1, 1)))
        np.testing.assert_array_equal(together[b, r], alone[0, 0])


def _floats(width):
    numbers = st.floats(-(2.0**100), 2.0**100, width=width, allow_subnormal=False)
    return st.lists(numbers | st.sampled_from([0.0, -0.0, 1.5, -np.inf]), min_size=6, max_size=6)


@settings(max_examples=150, deadline=None)
@given(values=_floats(32), k=st.integers(1, 9))
def test_kth_largest_is_exact(values, k):
    row = np.array(values, np.float32)
    found = float(jax.jit(kth_largest)(jnp.asarray(row), jnp.int32(k))[0])
    assert found == np.sort(row)[-min(k, 6)]


@settings(max_examples=50, deadline=None)
@given(values=_floats(64), k=st.integers(1, 6))
def test_kth_largest_is_exact_in_float64(values, k):
    with jax.enable_x64(True):
        found = float(jax.jit(kth_largest)(jnp.asarray(values, jnp.float64), jnp.int32(k))[0])
    assert found == np.sort(values)[-k]


def test_top_p_keeps_the_token_that_reaches_it_and_its_ties():
    logits = np.log(np.array([[[0.4, 0.2, 0.2, 0.15, 0.05]]])).astype(np.float32)
    kept = {
        p: np.flatnonzero(np.isfinite(_call(logits, SamplingConfig(top_p=p), None, [[0]])[0, 0])).tolist()
        for p in (0.1, 0.39, 0.41, 0.79, 0.81, 0.96)
    }
    assert kept == {
        0.1: [0],
        0.39: [0],
        0.41: [0, 1, 2],
        0.79: [0, 1, 2],
        0.81: [0, 1, 2, 3],
        0.96: [0, 1, 2, 3, 4],
    }


@pytest.mark.parametrize("asked", [{"top_p": 1e-45}, {"top_k": 1}, {"min_p": 1.0}, {"eta_cutoff": 1 - 1e-16}])
def test_the_tightest_filters_keep_the_best(asked):
    logits = np.array([[[1.0, -2.0, 3.0, 2.5, -8.0]]], np.float32)
    assert np.flatnonzero(np.isfinite(_call(logits, SamplingConfig(**asked), None, [[0]])[0, 0])).tolist() == [2]


def test_the_features_are_the_lowest_class_that_contains_what_is_asked():
    assert features_of(SamplingConfig()) == SamplingFeatures.SAMPLED
    off = SamplingConfig(top_p=1.0, min_p=0.2, repetition_penalty=1.3, penalty_window=5, suppress_tokens=(1,))
    assert features_of(off) == SamplingFeatures.SAMPLED
    for asked in ({"top_k": 1}, {"top_p": 0.5}, {"eta_cutoff": 0.5}, {"min_p": 0.5, "min_tokens_to_keep": 2}):
        assert features_of(SamplingConfig(**asked)) == SamplingFeatures.FILTERED
        assert features_of(SamplingConfig(**asked, temperature=0.0)) == SamplingFeatures.GREEDY
    assert features_for([SamplingConfig(temperature=0.0), off]) == SamplingFeatures.SAMPLED
    assert features_for([off, SamplingConfig(top_k=3), off]) == SamplingFeatures.FILTERED


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_among_others_has_the_scores_it_has_alone(dtype):
    """Bit for bit, though the batch's step contains what only its neighbours ask for."""
    with jax.enable_x64(dtype == np.float64):
        rng = np.random.default_rng(11)
        configs = [SamplingConfig(**asked) for asked in ASKED] + [SamplingConfig(temperature=0.0), SamplingConfig()]
        configs += [SamplingConfig(suppress_tokens=(3, 36), top_k=2), SamplingConfig(min_p=0.2, suppress_tokens=(0,))]
        ends = [(), (5,), (5, 6)]
        requests = [Request(range(1), c, 0, i % 4, ends[i % 3]) for i, c in enumerate(configs)]
        shape = len(configs), 3, VOCAB
        logits, penalised = rng.normal(scale=3, size=shape).astype(dtype), jnp.asarray(rng.random(shape) < 0.3)
        generated = jnp.asarray(rng.integers(0, 6, shape[:2]), jnp.int32)
        together = run(
            jnp.asarray(logits),
            penalised=penalised,
            generated=generated,
            settings=sequence_params(requests, VOCAB),
            features=features_for(configs),
        )
        for row, request in enumerate(requests):
            alone = run(
                jnp.asarray(logits[row : row + 1]),
                penalised=penalised[row : row + 1],
                generated=generated[row : row + 1],
                settings=sequence_params([request], VOCAB),
                features=features_of(request.sampling),
            )
            kept = np.isfinite(alone[0])
            if request.sampling.temperature:
                np.testing.assert_array_equal(together[row], alone[0], err_msg=str(request))
            else:  # filters do not apply to a greedy row, in either
                np.testing.assert_array_equal(np.asarray(together[row])[kept], np.asarray(alone[0])[kept])


def test_values_are_traced_so_another_value_compiles_nothing():
    compiled = []

    def traced(logits, **asked):
        compiled.append(asked["features"])
        return process(logits, **asked)

    counted = jax.jit(traced, static_argnames="features")
    logits, generated = jnp.zeros((1, 1, VOCAB), jnp.float32), jnp.zeros((1, 1), jnp.int32)
    for config in (SamplingConfig(top_k=3, temperature=0.5), SamplingConfig(top_k=7, seed=4, temperature=1.5)):
        settings = settings_of(config, vocab=VOCAB, batch=1)
        counted(
            logits,
            penalised=jnp.zeros_like(logits, bool),
            generated=generated,
            settings=settings,
            features=features_of(config),
        )
    assert len(compiled) == 1


def test_suppressed_ids_must_fit_the_vocabulary():
    with pytest.raises(UserError, match="the last id is 36"):
        settings_of(SamplingConfig(suppress_tokens=(37,)), vocab=VOCAB, batch=1)


def test_rows_of_a_batch_have_the_keys_of_their_sequence():
    both = settings_of(SamplingConfig(seed=3, sequence=4), vocab=VOCAB, batch=2)
    second = settings_of(SamplingConfig(seed=3, sequence=5), vocab=VOCAB, batch=1)
    np.testing.assert_array_equal(both.keys[1:], second.keys)
    assert (np.asarray(both.keys[0]) != np.asarray(both.keys[1])).any()


def test_draw_takes_the_lowest_of_equals():
    scores = jnp.asarray([[[1.0, 3.0, 3.0, 2.0], [-jnp.inf, -1.0, -5.0, -1.0]]], jnp.float32)
    assert draw(scores, None).tolist() == [[1, 1]]
    noise = jnp.asarray([[[2.0, 0.0, 0.0, 1.0], [99.0, 0.0, 4.0, 0.0]]], jnp.float32)
    assert draw(scores, noise).tolist() == [[0, 1]]
    assert draw(scores, noise).dtype == jnp.int32


def test_draw_of_nan_stays_inside_the_vocabulary():
    assert 0 <= int(draw(jnp.full((1, 1, 4), jnp.nan, jnp.float32), None)[0, 0]) < 4


@pytest.mark.parametrize("highest", [draw_module._highest, draw_module._highest_in_two_reductions])
def test_what_is_drawn_and_its_score(highest):
    """As accelerators find it and as CPUs do: ties to the lowest id, a NaN anywhere, a row that may draw nothing."""
    rng = np.random.default_rng(4)
    scores = np.round(rng.normal(scale=2, size=(3, 7, VOCAB))).astype(np.float32)
    scores[0, 0] = -np.inf
    scores[1, 2, 30], scores[2, 5, 0] = np.nan, np.nan
    tokens, found = jax.jit(highest)(scores)
    broken = np.isnan(scores).any(axis=-1)
    np.testing.assert_array_equal(np.isnan(found), broken)
    np.testing.assert_array_equal(np.asarray(found)[~broken], scores.max(axis=-1)[~broken])
    np.testing.assert_array_equal(np.asarray(tokens)[~broken], scores.argmax(axis=-1)[~broken])
    assert ((np.asarray(tokens) >= 0) & (np.asarray(tokens) < VOCAB)).all()


def test_nan_logits_stay_nan():
    logits = np.zeros((1, 1, VOCAB), np.float32)
    logits[0, 0, 3] = np.nan
    assert np.isnan(_call(logits, SamplingConfig(top_k=5, top_p=0.5), None, [[0]])[0, 0, 3])


def test_draws_follow_the_processed_distribution():
    """Chi-square over 20,000 positions of one seed against the oracle's probabilities."""
    config = SamplingConfig(temperature=0.7, min_p=0.05, repetition_penalty=1.3, seed=17)
    rng = np.random.default_rng(2)
    logits, penalised = rng.normal(size=10).astype(np.float32), rng.random(10) < 0.4
    scores = _call(logits[None, None], config, penalised[None, None], [[0]])
    expected = _softmax(oracle(logits, config, penalised, []))
    positions = jnp.arange(20_000, dtype=jnp.int32)[None]
    noise = gumbel_noise(settings_of(config, vocab=10, batch=1).keys, positions, 10)
    tokens = draw(jnp.broadcast_to(jnp.asarray(scores), noise.shape), noise)
    counts = np.bincount(tokens[0], minlength=10)
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], expected[expected > 0] * 20_000).pvalue > 1e-3


@pytest.mark.parametrize("sampled", [False, True])
def test_top_candidates(sampled):
    rng = np.random.default_rng(3)
    logits = (np.round(rng.normal(size=(2, 3, VOCAB)) * 4) / 4).astype(np.float32)
    scores = np.where(rng.random(logits.shape) < 0.5, -np.inf, logits)
    scores[0, 0, 2:] = -np.inf
    noise = rng.gumbel(size=logits.shape).astype(np.float32) if sampled else None
    tokens, log_probs = top_candidates(jnp.asarray(scores), None if noise is None else jnp.asarray(noise), 3)
    assert (tokens.dtype, log_probs.dtype) == (jnp.int32, jnp.float32)
    best = np.argsort(-(scores if noise is None else scores + noise), axis=-1, kind="stable")[..., :3]
    np.testing.assert_array_equal(tokens, best)
    with np.errstate(divide="ignore"):
        perturbed = scores if noise is None else scores + noise
        expected = np.log(np.apply_along_axis(_softmax, -1, perturbed.astype(np.float64)))
    np.testing.assert_allclose(log_probs, np.take_along_axis(expected, best, -1), rtol=1e-5, atol=1e-6)
    assert np.isneginf(log_probs[0, 0]).sum() == 3 - np.isfinite(scores[0, 0]).sum()
