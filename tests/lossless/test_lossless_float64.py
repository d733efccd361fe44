"""Equality in float64: there no near-tie can decide, so a difference is a mistake."""

import jax
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode, start
from speculations import SPECULATIONS

from tokenswift_jax.sampling import SamplingConfig

TOKENS = 2048
PROMPT = np.random.default_rng(1).integers(0, small_models.VOCAB, 20).tolist()
SAMPLING = SamplingConfig(
    temperature=0.9,
    top_k=12,
    top_p=0.97,
    min_p=0.02,
    eta_cutoff=0.01,
    repetition_penalty=1.1,
    penalty_window=24,
    seed=3,
)


@pytest.fixture(scope="module", autouse=True)
def wide_numbers():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model():
    return small_models.successor_model(layers=1, dtype=np.float64)


@pytest.fixture(scope="module")
def plain(model):
    return decode(model, PROMPT, SAMPLING, max_new_tokens=TOKENS)


def test_everything_is_float64(model, plain):
    running = start(model, [PROMPT], SAMPLING, SPECULATIONS["plain"], max_new_tokens=8)
    list(running)
    assert running.state is not None
    assert running.state.cache.keys.dtype == running.state.hidden.dtype == np.float64
    assert running.engine._inputs.sequence.top_p.dtype == np.float64
    assert len(plain.tokens) == TOKENS


@pytest.mark.parametrize("mode", ["partial", "fused", "selfspec"])
def test_tokens_are_those_of_plain_decoding(model, plain, mode):
    speculative = decode(model, PROMPT, SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS)
    assert_same(speculative.tokens, plain.tokens)
    assert min(speculative.accepted_per_depth) > 0


def test_float32_programs_are_kept_apart(model):
    """The same request in float32, in the same process: its own executables, its own dtype."""
    with jax.enable_x64(False):
        narrow = small_models.successor_model(layers=1)
        running = start(narrow, [PROMPT], SAMPLING, SPECULATIONS["plain"], max_new_tokens=8)
        list(running)
        assert running.state is not None
        assert running.state.cache.keys.dtype == np.float32
