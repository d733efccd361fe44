"""Equality in the harder places: penalties inside one draft, whole default trees, windows, chunk sizes, resume."""

import functools

import numpy as np
import pytest
import small_models
from decoded import PLAIN, assert_same, decode, start
from speculations import SPECULATIONS

from tokenswift_jax.engine import plan_programs
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig

PROMPT = np.random.default_rng(2).integers(0, small_models.VOCAB, 20).tolist()
CAPACITY = 512  # of every run, so that texts of any length share their executables
PENALISED = {"repetition_penalty": 1.05, "min_p": 0.05}


@pytest.fixture(scope="module")
def model():
    return small_models.successor_model(layers=1, cycle=3)


@pytest.fixture(scope="module")
def plain_text(model):
    """Plain decoding's tokens under a penalty window: one text for all modes."""

    @functools.cache
    def of(window):
        sampling = SamplingConfig(seed=2, **PENALISED, penalty_window=window)
        return decode(model, PROMPT, sampling, max_new_tokens=400, capacity=CAPACITY).tokens

    return of


@pytest.fixture(scope="module")
def full_text(plain_text):
    return plain_text(3)


def repeats_inside(text, window):
    """Accepted tokens that the window holds because the same iteration emitted them before."""
    found = 0
    for emitted in text.runs:
        for index in emitted:
            recent = text.tokens[max(emitted.start, index - window) : index]
            found += text.tokens[index] in recent
    return found


@pytest.mark.parametrize("mode", ["partial", "fused", "selfspec"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, None])
def test_the_window_slides_inside_the_tree(model, plain_text, mode, window):
    """Tokens that repeat every 3 positions: what the tree itself emits enters and leaves windows of 1 to 4."""
    sampling = SamplingConfig(seed=2, **PENALISED, penalty_window=window)
    speculative = decode(model, PROMPT, sampling, SPECULATIONS[mode], max_new_tokens=400, capacity=CAPACITY)
    assert_same(speculative.tokens, plain_text(window))
    assert sum(speculative.accepted_per_depth[1:]) > 20
    if window in (3, 4):
        assert repeats_inside(speculative, window) > 10


@pytest.mark.parametrize("mode", ["partial", "fused"])
@pytest.mark.parametrize("size", [1, 5])
def test_chunks_may_have_any_size(model, full_text, monkeypatch, mode, size):
    monkeypatch.setattr(plan_programs, "CHUNK_TOKENS", size)
    sampling = SamplingConfig(seed=2, **PENALISED, penalty_window=3)
    limits = {"max_new_tokens": 100, "capacity": CAPACITY}
    chunks = list(start(model, [PROMPT], sampling, SPECULATIONS[mode], **limits))
    assert len(chunks) > 100 / (size + 5)
    assert_same([token for chunk in chunks for token in chunk.rows[0].log.token_ids.tolist()], full_text[:100])


@pytest.mark.parametrize(
    ("before", "after"),
    [("partial", "fused"), ("fused", "partial"), ("ngram", "selfspec"), ("fused", "partial blocks")],
)
def test_a_text_may_be_resumed_anywhere_in_another_mode(model, full_text, before, after):
    sampling = SamplingConfig(seed=2, **PENALISED, penalty_window=3)
    limits = {"max_new_tokens": 200, "capacity": CAPACITY}
    begun = decode(model, PROMPT, sampling, SPECULATIONS[before], **limits)
    assert_same(begun.tokens, full_text[:200])
    inside = next(emitted for emitted in begun.runs[10:] if len(emitted) >= 3)
    for cut in (1, 2, inside.start, inside.start + 1, inside.start + 2, 70, 199):
        rest = decode(model, PROMPT, sampling, SPECULATIONS[after], **limits, emitted=[begun.tokens[:cut]])
        assert_same(begun.tokens[:cut] + rest.tokens, full_text[:200])
        assert rest.finish == "length"


def test_a_resumed_text_that_had_ended_emits_nothing(model, full_text):
    ended = small_models.with_eos(model, full_text[30])
    sampling = SamplingConfig(seed=2, **PENALISED, penalty_window=3)
    first = full_text.index(full_text[30])
    for emitted, cap in ((full_text[: first + 1], 400), (full_text[:first], first)):
        assert list(start(ended, [PROMPT], sampling, PLAIN, max_new_tokens=cap, emitted=[emitted])) == []


@pytest.mark.parametrize("draft_block", [None, 16])
def test_the_default_tree_and_sliding_windows(draft_block):
    """The whole tree of 40 nodes and 20 chains, on layers of which one sees 24 positions and one 100."""
    model = small_models.successor_model(windows=(24, 100))
    sampling = SamplingConfig(seed=3, min_p=0.05)
    speculation = SpeculationConfig(
        mode="tokenswift",
        schedule="partial",
        tree=(1, 3, 3, 3),  # given, because a CPU verifies 3 nodes of it otherwise
        **{"draft_cache": 64, "draft_sinks": 8, "draft_block": draft_block},
    )
    plain = decode(model, PROMPT, sampling, max_new_tokens=400)
    speculative = decode(model, PROMPT, sampling, speculation, max_new_tokens=400)
    assert_same(speculative.tokens, plain.tokens)
    assert min(speculative.accepted_per_depth) > 10
    unwindowed = small_models.successor_model()
    assert decode(unwindowed, PROMPT, sampling, max_new_tokens=400).tokens != plain.tokens
