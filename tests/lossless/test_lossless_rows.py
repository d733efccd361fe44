"""A batch whose rows share no setting: every row is the text of its request alone, in float32 and in float64."""

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


def check(model, requests, mode):
    texts = decode_requests(model, requests, SPECULATIONS[mode])
    for request, text in zip(requests, texts, strict=True):
        (alone,) = decode_requests(model, [request], SPECULATIONS["plain"])
        assert_same(text.tokens, alone.tokens)
        assert text.finish == alone.finish
    return texts


@pytest.fixture(scope="module")
def model():
    return small_models.with_eos(small_models.successor_model(layers=1, certainty=6.0, context=0.8), EOS)


@pytest.mark.parametrize("mode", MODES)
def test_rows_with_their_own_settings(model, mode):
    requests = requests_of((3, 90, 31, 2, 60), 200)
    assert features_for(request.sampling for request in requests) == SamplingFeatures.FILTERED
    texts = check(model, requests, mode)
    assert len({len(text.tokens) for text in texts}) >= 4
    assert {text.finish for text in texts} == {"eos", "length"}
    if mode not in ("plain", "auto"):
        assert sum(sum(text.accepted_per_depth) for text in texts) > 10


@pytest.mark.parametrize("mode", ["plain", "partial", "fused"])
def test_rows_beyond_a_thousand_slots(model, mode):
    """Lengths on both sides of the block in which attention on a CPU walks a long cache."""
    check(model, requests_of((1300, 90, 2100, 700, 1020), 120), mode)


@pytest.mark.parametrize("mode", ["plain", "partial", "fused", "selfspec", "ngram"])
def test_float64(mode):
    with jax.enable_x64(True):
        model = small_models.successor_model(layers=1, certainty=6.0, context=0.8, dtype=np.float64)
        check(small_models.with_eos(model, EOS), requests_of((3, 90, 31, 1100, 60), 150), mode)
