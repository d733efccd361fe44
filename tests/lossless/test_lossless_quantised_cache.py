"""A target whose full cache is in 8 bits: every mode writes the text that plain decoding of that target writes.

In float64, where a row's keys are the same numbers to 1e-15 however many rows a pass has, and so round to the same
eight bits. In float32 they agree to 1e-7, which moves about one number in 40,000 to its neighbour: then a near-tie may
be decided otherwise, as it may in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from decoded import PLAIN, assert_same, decode, decode_batch, start
from speculations import SPECULATIONS

from tests.engine_fixture import part_of
from tokenswift_jax.kv.draft_positions import DraftCache
from tokenswift_jax.sampling import SamplingConfig

TOKENS = 700
RANDOM = np.random.default_rng(1)
PROMPT = RANDOM.integers(0, small_models.VOCAB, 20).tolist()
SAMPLING = SamplingConfig(temperature=0.9, min_p=0.02, repetition_penalty=1.1, penalty_window=24, seed=3)
MODES = [
    *("partial", "partial blocks", "fused", "medusa", "selfspec", "ngram", "auto"),
    pytest.param("selfspec blocks", marks=pytest.mark.long),
]


@pytest.fixture(scope="module", autouse=True)
def wide_numbers():
    with jax.enable_x64(True):
        yield


@functools.cache
def model():
    """Attention decides much, so that eight bits of it do too."""
    return small_models.successor_model(layers=2, dtype=np.float64, context=1.0)


@functools.cache
def plain(cache_dtype):
    return decode(model(), PROMPT, SAMPLING, PLAIN, max_new_tokens=TOKENS, cache_dtype=cache_dtype)


def test_it_is_another_target():
    """Eight bits change the text, and int8 otherwise than float8."""
    texts = [plain(cache_dtype).tokens for cache_dtype in (None, "int8", "float8_e4m3")]
    assert all(one != other for i, one in enumerate(texts) for other in texts[:i])


@pytest.mark.parametrize(
    ("cache_dtype", "stored"),
    [("int8", "int8"), pytest.param("float8_e4m3", "float8_e4m3fn", marks=pytest.mark.long)],
)
def test_the_cache_is_in_eight_bits(cache_dtype, stored):
    # As many tokens as the texts of the other tests: their program serves.
    running = start(
        model(), [PROMPT], SAMPLING, SPECULATIONS["partial"], max_new_tokens=TOKENS, cache_dtype=cache_dtype
    )
    list(running)
    state = running.state
    assert state is not None
    for cache in (state.cache, part_of(state, DraftCache).cache):
        assert cache.keys.dtype == cache.values.dtype == jnp.dtype(stored)
        assert cache.key_scales.dtype == np.float32
    assert state.hidden.dtype == state.query.dtype == np.float64


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_plain_decoding(mode):
    text = decode(model(), PROMPT, SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS, cache_dtype="int8")
    assert_same(text.tokens, plain("int8").tokens)
    if mode != "auto":
        assert text.accepted_per_depth[0] > 20


@pytest.mark.parametrize("mode", [pytest.param("partial", marks=pytest.mark.long), "fused"])
def test_float8(mode):
    text = decode(model(), PROMPT, SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS, cache_dtype="float8_e4m3")
    assert_same(text.tokens, plain("float8_e4m3").tokens)
    assert text.accepted_per_depth[0] > 20


def test_a_long_prompt_and_a_resumed_text():
    """Prefill in chunks of 256 rows leaves what decoding leaves, so a text goes on from any place."""
    prompt = PROMPT + plain("int8").tokens[:400]
    options = {"max_new_tokens": 200, "cache_dtype": "int8"}
    whole = decode(model(), prompt, SAMPLING, PLAIN, **options)
    assert_same(whole.tokens, plain("int8").tokens[400:600])
    rest = decode(model(), prompt, SAMPLING, SPECULATIONS["fused"], emitted=[whole.tokens[:150]], **options)
    assert_same(rest.tokens, whole.tokens[150:])


def test_a_row_of_a_batch_is_the_text_alone():
    prompts = [PROMPT, RANDOM.integers(0, small_models.VOCAB, 300).tolist()]
    options = {"max_new_tokens": 120, "cache_dtype": "int8"}
    texts = decode_batch(model(), prompts, SAMPLING, SPECULATIONS["partial"], **options)
    assert_same(texts[0].tokens, plain("int8").tokens[:120])
    assert len(texts[1].tokens) == 120
