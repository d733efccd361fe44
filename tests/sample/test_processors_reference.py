"""The processors against transformers' own, and against the reference program where the contract agrees with it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine_fixture import settings_of
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.penalty import last_positions, text_penalised
from tokenswift_jax.sample.processors import process
from tokenswift_jax.sampling import SamplingConfig

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
run = jax.jit(process, static_argnames="features")
HISTORY = np.random.default_rng(7).integers(0, 300, 60)


def _scores(logits, history, config, *, eos=(), generated=0, min_new_tokens=0):
    """[rows, vocab] logits that all follow one history."""
    rows, vocab = logits.shape
    settings = settings_of(config, vocab=vocab, batch=1, eos_ids=eos, min_new_tokens=min_new_tokens)
    history = jnp.asarray(history, jnp.int32)[None]
    length = jnp.asarray([history.shape[1]], jnp.int32)
    last = last_positions(history, length, vocab)
    penalised, _ = text_penalised(last, jnp.zeros((1, 1), jnp.int32), length, settings.penalty_window)
    return np.asarray(
        run(
            jnp.asarray(logits)[None],
            penalised=jnp.broadcast_to(penalised, (1, rows, vocab)),
            generated=jnp.full((1, rows), generated, jnp.int32),
            settings=settings,
            features=features_of(config),
        )[0]
    )


def _transformers(logits, history, config, *, eos=(), generated=0, min_new_tokens=0):
    """The same by transformers' processors, in the order of its `_get_logits_processor`."""
    torch = pytest.importorskip(
        "torch", reason="TORCH IS MISSING: the processors were NOT compared with transformers' own"
    )
    from transformers.generation import logits_process as hf

    keep = config.min_tokens_to_keep
    chosen = []
    window = HISTORY[-config.penalty_window :] if config.penalty_window else history
    if config.repetition_penalty != 1:
        chosen.append(hf.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if min_new_tokens:
        prompt = len(window) - generated
        chosen.append(hf.MinNewTokensLengthLogitsProcessor(prompt, min_new_tokens, list(eos)))
    if config.suppress_tokens:
        chosen.append(hf.SuppressTokensLogitsProcessor(list(config.suppress_tokens)))
    if config.temperature > 0:
        chosen.append(hf.TemperatureLogitsWarper(config.temperature))
        if config.top_k is not None:
            chosen.append(hf.TopKLogitsWarper(config.top_k, min_tokens_to_keep=keep))
        if config.top_p is not None:
            chosen.append(hf.TopPLogitsWarper(config.top_p, min_tokens_to_keep=keep))
        if config.min_p is not None:
            chosen.append(hf.MinPLogitsWarper(config.min_p, min_tokens_to_keep=keep))
        if config.eta_cutoff is not None:
            chosen.append(hf.EtaLogitsWarper(config.eta_cutoff, min_tokens_to_keep=keep))
    ids = torch.tensor(np.broadcast_to(window, (len(logits), len(window))).copy())
    return hf.LogitsProcessorList(chosen)(ids, torch.tensor(logits)).numpy()


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.2},
        {"repetition_penalty": 1.2, "penalty_window": 8},
        {"repetition_penalty": 0.8},
        {"temperature": 0.7},
        {"temperature": 0.0, "repetition_penalty": 1.3, "suppress_tokens": (4, 9)},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 3, "min_tokens_to_keep": 10},
        {"top_k": 5000},
        {"top_p": 0.9},
        {"top_p": 0.1},
        {"top_p": 0.1, "min_tokens_to_keep": 7},
        {"min_p": 0.1},
        {"min_p": 0.05, "min_tokens_to_keep": 20},
        {"eta_cutoff": 2e-4},
        {"eta_cutoff": 4e-3},
        {"eta_cutoff": 0.3, "min_tokens_to_keep": 4},
        {"suppress_tokens": (18, 0, 511)},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 100, "top_p": 0.9, "min_p": 0.02, "eta_cutoff": 1e-3, "min_tokens_to_keep": 3},
        {"temperature": 0.8, "min_p": 0.1, "repetition_penalty": 1.2, "penalty_window": 30, "suppress_tokens": (1,)},
    ],
)
def test_equals_transformers(asked):
    logits = np.random.default_rng(0).normal(scale=3, size=(4, 512)).astype(np.float32)
    config = SamplingConfig(**asked)
    expected = _transformers(logits, HISTORY, config)
    scores = _scores(logits, HISTORY, config)
    np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(expected))
    # One division or product each: an ulp where the compilers choose differently.
    np.testing.assert_allclose(scores, expected, rtol=3e-7)


@pytest.mark.parametrize("generated", [0, 4, 5, 9])
def test_min_new_tokens_equals_transformers(generated):
    logits = np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)
    asked = {"eos": (3, 8), "generated": generated, "min_new_tokens": 5}
    scores = _scores(logits, HISTORY, SamplingConfig(), **asked)
    np.testing.assert_array_equal(scores, _transformers(logits, HISTORY, SamplingConfig(), **asked))
    assert np.isneginf(scores[:, [3, 8]]).all() == (generated < 5)


# The reference's names -> the same request here. Left out:
#   greedyflag                     it samples with do_sample False, at temperature 1
#   pen0.8_w8                      it ignores a penalty below 1
#   pen1.2_w8_minp0.1_keep1_eps3e-4_topk5_topp0.9    min-p and epsilon run before top-k and top-p there
#   every norm/*pen*               the penalty reaches one row; norm_rowwise is what it means
# Temperature comes before the penalty there; both scale, so the order does not matter.
CASES = {
    "norm/plain": {},
    "norm/temp0.7": {"temperature": 0.7},
    "norm/minp0.1_keep1": {"min_p": 0.1},
    "norm/minp0.1_keep20": {"min_p": 0.1, "min_tokens_to_keep": 20},
    "norm/eps3e-4_keep1": {"eta_cutoff": 3e-4},
    "norm/eps3e-4_keep20": {"eta_cutoff": 3e-4, "min_tokens_to_keep": 20},
    "norm/eps4e-3_keep1": {"eta_cutoff": 4e-3},
    "norm/topp0.9": {"top_p": 0.9},
    "norm/topk5": {"top_k": 5},
    "norm/topk50_topp0.9": {"top_k": 50, "top_p": 0.9},
    "norm/banned": {"suppress_tokens": (3, 7)},
    "norm_rowwise/pen1.2_w8": {"repetition_penalty": 1.2, "penalty_window": 8},
    "norm_rowwise/pen1.2_w0": {"repetition_penalty": 1.2},
    "norm_rowwise/temp0.7_pen1.2_w8_minp0.1_keep1": {
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "penalty_window": 8,
        "min_p": 0.1,
    },
    "norm_rowwise/temp0.7_pen1.2_w8_minp0.1_keep20": {
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "penalty_window": 8,
        "min_p": 0.1,
        "min_tokens_to_keep": 20,
    },
    "norm_rowwise/temp0.7_pen1.2_w8_topk50_topp0.9": {
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "penalty_window": 8,
        "top_k": 50,
        "top_p": 0.9,
    },
}


@pytest.mark.parametrize("name", ["llama2_yarn", "llama3_1"])
def test_equals_the_reference_program(name):
    path = GOLDEN / name / "golden.npz"
    if not path.exists():
        pytest.skip(f"GOLDEN DATA MISSING: {path} is not there, the reference's sampling was NOT compared")
    golden = np.load(path)
    for case, asked in CASES.items():
        scores = _scores(golden["norm_logits_in"], golden["norm_history"], SamplingConfig(**asked)).astype(np.float64)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities = weights / weights.sum(-1, keepdims=True)
        np.testing.assert_array_equal(probabilities > 0, golden[case] > 0, err_msg=case)
        # The recorded probabilities are float32 softmaxes of up to 512 terms.
        np.testing.assert_allclose(probabilities, golden[case], rtol=2e-5, err_msg=case)
