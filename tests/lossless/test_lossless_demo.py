"""The bundled demo model, with its own sampling and greedily: every mode writes plain decoding's tokens."""

import functools

import jax
import pytest
from decoded import PLAIN, assert_same, decode

import tokenswift_jax as ts
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig

TOKENS = 1024
CAPACITY = 1536  # of every run, so that texts of any length share their executables
PROMPT = "The old house stood at the end of the lane, and nobody had lived in it for many years. "
_TREE = {"tree": (1, 2, 2, 1), "ngram_k": 4, "ngram_slots": 8, "node_budget": 5}
_CACHE = {"draft_cache": 192, "draft_sinks": 16}
SPECULATIONS = {
    "partial": SpeculationConfig(mode="tokenswift", schedule="partial", **_TREE, **_CACHE),
    "fused": SpeculationConfig(mode="tokenswift", schedule="fused", **_TREE),
    "selfspec": SpeculationConfig(mode="selfspec", **_CACHE),
    "auto": SpeculationConfig(mode="auto", **_TREE, **_CACHE),
}


@pytest.fixture(scope="module")
def model():
    before = jax.config.jax_compilation_cache_dir
    yield ts.load()
    jax.config.update("jax_compilation_cache_dir", before)


def sampling(model, name):
    if name == "greedy":
        return SamplingConfig(temperature=0.0)
    return resolve_sampling({"seed": 1}, model.generation_config)


@functools.cache
def texts():
    return {}


def text(model, name, mode=None):
    """The text of a case; mode None is plain decoding."""
    if (name, mode) not in texts():
        speculation = PLAIN if mode is None else SPECULATIONS[mode]
        ids = model.tokenizer(PROMPT)["input_ids"]
        limits = {"max_new_tokens": TOKENS, "ignore_eos": True, "capacity": CAPACITY}
        texts()[name, mode] = decode(model, ids, sampling(model, name), speculation, **limits)
    return texts()[name, mode]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param("own", "partial", marks=pytest.mark.long), ("own", "fused"), ("own", "auto"), ("greedy", "fused")],
)
def test_tokens_are_those_of_plain_decoding(model, name, mode):
    plain, speculative = text(model, name), text(model, name, mode)
    assert len(plain.tokens) == TOKENS
    assert_same(speculative.tokens, plain.tokens)
    if mode != "auto":
        assert sum(speculative.accepted_per_depth) > TOKENS / 20
        assert min(speculative.accepted_per_depth) > 0


def test_the_demo_accepts_drafts_of_every_source(model):
    """The heads' and, in a text that repeats what the heads do not foresee, the table's; unlike the tiny models'."""
    ids = model.tokenizer("It was late in the autumn when")["input_ids"]
    limits = {"max_new_tokens": 512, "ignore_eos": True, "capacity": CAPACITY}
    plain, speculative = (
        decode(model, ids, sampling(model, "greedy"), speculation, **limits)
        for speculation in (PLAIN, SPECULATIONS["fused"])
    )
    assert_same(speculative.tokens, plain.tokens)
    assert set(speculative.sources.tolist()) == {0, 1, 2}
