"""The margin is the delta at which the emitted token becomes the draw: closed form, both sides, limits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine_fixture import settings_of
from tokenswift_jax.audit.margin import MARGIN_LIMIT, margin
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.processors import process
from tokenswift_jax.sampling import SamplingConfig

DRAWS, VOCAB = 12, 40
run = jax.jit(margin, static_argnames="features")


def _problem(config, seed=0):
    """Logits, noise and a window, the arguments every call shares, and the draws."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(scale=3, size=(DRAWS, VOCAB)), jnp.float32)
    noise = jnp.asarray(rng.gumbel(size=(DRAWS, VOCAB)), jnp.float32) if config.temperature > 0 else None
    features = features_of(config)
    shared = {
        "penalised": jnp.asarray(rng.random((DRAWS, VOCAB)) < 0.3),
        "generated": jnp.zeros((DRAWS,), jnp.int32),
        "settings": settings_of(config, vocab=VOCAB, batch=1),
        "features": features,
    }
    return logits, noise, shared, _draws(logits, noise, shared)


def _draws(logits, noise, shared):
    penalised = shared["penalised"]
    scores = process(
        logits[None],
        penalised=penalised[None],
        generated=shared["generated"][None],
        settings=shared["settings"],
        features=shared["features"],
    )
    return np.asarray(draw(scores[0], noise))


def _accepted(logits, emitted, delta, noise, shared):
    """Whether moving every logit by delta makes the emitted token the draw, in either of the two ways."""
    own = np.arange(VOCAB) == emitted[:, None]
    off = {"top_k": 0, "top_p": 1, "min_p": 0, "eta_cutoff": 0}
    unfiltered = {name: jnp.full_like(getattr(shared["settings"], name), value) for name, value in off.items()}
    scores = process(
        logits[None],
        penalised=shared["penalised"][None],
        generated=shared["generated"][None],
        settings=replace(shared["settings"], **unfiltered),
        features=shared["features"],
    )
    perturbed = np.asarray(scores)[0] + (0 if noise is None else np.asarray(noise))
    ahead = perturbed >= perturbed[np.arange(DRAWS), emitted][:, None]
    results = []
    for up in (own, own | ~ahead):
        moved = np.asarray(logits) + np.where(up, 1, -1) * np.asarray(delta)[:, None]
        results.append(_draws(jnp.asarray(moved, jnp.float32), noise, shared) == emitted)
    return results[0] | results[1]


def test_greedy_is_half_the_gap():
    logits, noise, shared, drawn = _problem(SamplingConfig(temperature=0.0))
    emitted = np.random.default_rng(1).integers(0, VOCAB, DRAWS)
    found = run(logits, jnp.asarray(emitted, jnp.int32), noise, **shared)
    rows = np.arange(DRAWS)
    gap = (np.asarray(logits)[rows, drawn] - np.asarray(logits)[rows, emitted]) / 2
    # Half an ulp of the logits (magnitude up to 16) on each side of the comparison.
    np.testing.assert_allclose(found, gap, atol=2e-6)
    assert found.dtype == jnp.float32


def test_the_draw_itself_has_margin_zero():
    for config in (SamplingConfig(temperature=0.0), SamplingConfig(top_p=0.8, repetition_penalty=1.2)):
        logits, noise, shared, drawn = _problem(config)
        assert (np.asarray(run(logits, jnp.asarray(drawn), noise, **shared)) == 0).all()


def test_a_tie_lost_by_the_order_of_ids_is_the_smallest_margin():
    logits = jnp.zeros((1, VOCAB), jnp.float32)
    config = SamplingConfig(temperature=0.0)
    shared = {
        "penalised": jnp.zeros((1, 1), bool),
        "generated": jnp.zeros((1,), jnp.int32),
        "settings": settings_of(config, vocab=VOCAB, batch=1),
        "features": features_of(config),
    }
    found = float(run(logits, jnp.asarray([7], jnp.int32), None, **shared)[0])
    assert 0 < found < 1e-7


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.6},
        {"temperature": 0.8, "repetition_penalty": 1.2},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"eta_cutoff": 0.05},
        {"top_k": 10, "top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.1, "temperature": 1.2},
    ],
)
def test_just_above_it_is_the_draw_and_just_below_it_is_not(asked):
    logits, noise, shared, drawn = _problem(SamplingConfig(**asked), seed=4)
    emitted = np.random.default_rng(2).integers(0, VOCAB, DRAWS)
    found = np.asarray(run(logits, jnp.asarray(emitted, jnp.int32), noise, **shared))
    away = drawn != emitted
    assert away.sum() >= DRAWS - 3
    assert (found[~away] == 0).all()
    assert (found[away] > 0).all()
    # Ten times the resolution of float32 logits near 16 (1e-6); that of the search is finer.
    step = 1e-5 * np.maximum(found, 1)
    assert _accepted(logits, emitted, found + step, noise, shared).all()
    below = np.where(found > step, found - step, 0)
    assert not _accepted(logits, emitted, below, noise, shared)[away].any()


def test_a_filter_that_drops_a_likely_draw_has_the_filters_margin():
    """Noise wants token 1, top-k 1 drops it: it must overtake token 0, 2 logits above, and then is drawn."""
    config = SamplingConfig(top_k=1)
    shared = {
        "penalised": jnp.zeros((1, 1), bool),
        "generated": jnp.zeros((1,), jnp.int32),
        "settings": settings_of(config, vocab=3, batch=1),
        "features": features_of(config),
    }
    logits, noise = jnp.asarray([[2.0, 0.0, -1.0]], jnp.float32), jnp.asarray([[0.0, 9.0, 0.0]], jnp.float32)
    found = float(run(logits, jnp.asarray([1], jnp.int32), noise, **shared)[0])
    assert found == pytest.approx(1.0, abs=1e-6)


def test_a_draw_that_a_filter_nearly_dropped_has_the_filters_margin():
    """Noise wants token 2, which min-p keeps by 0.02 logits: token 0 up and token 2 down by 0.01 leave token 1."""
    config = SamplingConfig(min_p=0.1)
    shared = {
        "penalised": jnp.zeros((1, 1), bool),
        "generated": jnp.zeros((1,), jnp.int32),
        "settings": settings_of(config, vocab=3, batch=1),
        "features": features_of(config),
    }
    logits = jnp.asarray([[3.0, 2.0, 3.0 + np.log(0.1) + 0.02]], jnp.float32)
    noise = jnp.asarray([[0.0, 4.0, 9.0]], jnp.float32)
    found = float(run(logits, jnp.asarray([1], jnp.int32), noise, **shared)[0])
    assert found == pytest.approx(0.01, abs=1e-6)


def test_a_forbidden_token_has_the_limit():
    config = SamplingConfig(suppress_tokens=(5,), top_k=4)
    logits, noise, shared, drawn = _problem(config)
    emitted = drawn.copy()
    emitted[3] = 5
    found = np.asarray(run(logits, jnp.asarray(emitted), noise, **shared))
    assert found[3] == MARGIN_LIMIT
    assert (np.delete(found, 3) == 0).all()


def test_float64_resolves_what_float32_cannot():
    with jax.enable_x64(True):
        config = SamplingConfig(temperature=0.0)
        logits = jnp.asarray([[10.0, 10.0 + 4e-6, 0.0]], jnp.float64)
        shared = {
            "penalised": jnp.zeros((1, 1), bool),
            "generated": jnp.zeros((1,), jnp.int32),
            "settings": settings_of(config, vocab=3, batch=1),
            "features": features_of(config),
        }
        found = run(logits, jnp.asarray([0], jnp.int32), None, **shared)
    assert found.dtype == jnp.float32
    assert float(found[0]) == pytest.approx(2e-6, rel=1e-5)
