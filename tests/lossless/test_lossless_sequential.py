"""Sequential draft heads, and node sets of both head types: the tokens are those of plain decoding."""

import functools

import numpy as np
import pytest
import small_models
from decoded import assert_same, decode, decode_batch
from speculations import SPECULATIONS

from tokenswift_jax.models.node_sets import NodeSets
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig

TOKENS = 300
PROMPTS = [np.random.default_rng(6).integers(0, small_models.VOCAB, length).tolist() for length in (5, 70)]
SAMPLING = SamplingConfig(min_p=0.05, repetition_penalty=1.1, penalty_window=24, seed=4)
NODE_SETS = NodeSets(
    partial=((0,), (0, 0), (1,), (0, 2), (0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0)),
    fused=((0,), (1,), (0, 0), (1, 0), (0, 1), (0, 0, 0)),
)


@functools.cache
def model(head_type="sequential", node_sets=False):
    sets = {"node_sets": NODE_SETS} if node_sets else {}
    return small_models.successor_model(layers=1, head_type=head_type, **sets)


@functools.cache
def plain(greedy):
    """Draft heads play no part in plain decoding: one text for all."""
    sampling = SamplingConfig(temperature=0.0) if greedy else SAMPLING
    return decode_batch(model(), PROMPTS, sampling, SPECULATIONS["plain"], max_new_tokens=TOKENS)


@pytest.mark.parametrize("mode", ["partial", "fused", "medusa"])
def test_a_sampled_batch(mode):
    texts = decode_batch(model(), PROMPTS, SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS)
    for text, expected in zip(texts, plain(greedy=False), strict=True):
        assert_same(text.tokens, expected.tokens)
        assert min(text.accepted_per_depth) > 0


@pytest.mark.parametrize("mode", ["partial", "fused"])
def test_greedy(mode):
    text = decode(model(), PROMPTS[0], SamplingConfig(temperature=0.0), SPECULATIONS[mode], max_new_tokens=TOKENS)
    assert_same(text.tokens, plain(greedy=True)[0].tokens)
    # The heads were made to know each token's successor; only attention says otherwise.
    assert min(text.accepted_per_depth) > TOKENS / 10


@pytest.mark.parametrize("mode", ["partial", "fused"])
def test_medusa_heads(mode):
    chosen = small_models.random_model(small_models.VOCAB, head_type="medusa")
    expected = decode(chosen, PROMPTS[0], SAMPLING, SPECULATIONS["plain"], max_new_tokens=TOKENS)
    text = decode(chosen, PROMPTS[0], SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS)
    assert_same(text.tokens, expected.tokens)
    assert text.accepted_per_depth[0] > 0


@pytest.mark.parametrize("head_type", ["chained", "sequential"])
@pytest.mark.parametrize(
    "speculation",
    [
        SpeculationConfig(mode="tokenswift", schedule="partial", ngram_k=2, ngram_slots=4, draft_cache=64),
        SpeculationConfig(mode="tokenswift", schedule="fused", ngram_k=0, node_budget=4),
    ],
    ids=lambda speculation: speculation.schedule,
)
def test_node_sets(head_type, speculation):
    """The same backbone, so the same text; the whole set with chains, and a part of it."""
    chosen = model(head_type, node_sets=True)
    text = decode(chosen, PROMPTS[0], SAMPLING, speculation, max_new_tokens=TOKENS)
    assert_same(text.tokens, plain(greedy=False)[0].tokens)
    assert min(text.accepted_per_depth) > 0
