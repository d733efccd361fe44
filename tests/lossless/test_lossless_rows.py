"""A batch whose rows share no setting: every row is the text of its request alone, in float32 and in float64."""

import functools

import jax
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode_requests
from speculations import SPECULATIONS

from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures, features_for
from tokenswift_jax.sampling import SamplingConfig

MODES = ("plain", "partial", "partial blocks", "fused", "medusa", "selfspec", "ngram", "auto")
EOS = 36
# Greedy; hot, filtered and penalised; min-p with suppressed ids; eta; neutral. Seeds, windows and sequences differ.
SETTINGS = (
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.3, top_p=0.9, repetition_penalty=1.2, penalty_window=24, seed=7),
    SamplingConfig(min_p=0.05, suppress_tokens=(0, 5), seed=1, sequence=11),
    SamplingConfig(top_k=6, eta_cutoff=0.01, min_tokens_to_keep=2, repetition_penalty=1.05, seed=2),
    SamplingConfig(seed=4_000_000_000),
)


def requests_of(lengths, new):
    """One request a setting, with its own prompt, limits and EOS set."""
    random = np.random.default_rng(3)
    ends = ((), (EOS,), (EOS, 7), (9,), ())
    return [
        Request(
            random.integers(0, small_models.VOCAB, length).tolist(), settings, new - 13 * row, 5 * row, ends[row], ()
        )
        for row, (length, settings) in enumerate(zip(lengths, SETTINGS, strict=True))
    ]


@functools.cache
def model(dtype=np.float32):
    made = small_models.successor_model(layers=1, certainty=6.0, context=0.8, dtype=dtype)
    return small_models.with_eos(made, EOS)


@functools.cache
def alone(lengths, new, dtype):
    """The text of each request by itself, from plain decoding: one for all modes."""
    plain = SPECULATIONS["plain"]
    return [decode_requests(model(dtype), [request], plain)[0] for request in requests_of(lengths, new)]


def check(lengths, new, mode, dtype=np.float32):
    texts = decode_requests(model(dtype), requests_of(lengths, new), SPECULATIONS[mode])
    for text, single in zip(texts, alone(lengths, new, dtype), strict=True):
        assert_same(text.tokens, single.tokens)
        assert text.finish == single.finish
    return texts


@pytest.mark.parametrize("mode", MODES)
def test_rows_with_their_own_settings(mode):
    assert features_for(SETTINGS) == SamplingFeatures.FILTERED
    texts = check((3, 90, 31, 2, 60), 200, mode)
    assert len({len(text.tokens) for text in texts}) >= 4
    assert {text.finish for text in texts} == {"eos", "length"}
    if mode not in ("plain", "auto"):
        assert sum(sum(text.accepted_per_depth) for text in texts) > 10


@pytest.mark.parametrize("mode", ["plain", "partial", "fused"])
def test_rows_beyond_a_thousand_slots(mode):
    """Lengths on both sides of the block in which attention on a CPU walks a long cache."""
    check((1300, 90, 2100, 700, 1020), 120, mode)


@pytest.mark.parametrize(
    "mode",
    ["fused", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("plain", "partial", "selfspec", "ngram"))],
)
def test_float64(mode):
    with jax.enable_x64(True):
        check((3, 90, 31, 1100, 60), 150, mode, np.float64)
