"""Heads that score a draft vocabulary: the text is plain decoding's, and the drafts are the best of those tokens."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode
from speculations import SPECULATIONS

from tests.engine_fixture import settings_of
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.candidates import DraftSampler

TOKENS = 200
VOCAB = small_models.VOCAB
IDS = np.random.default_rng(7).permutation(VOCAB)[:36]
PROMPT = [5, 17, 3]
SAMPLING = {
    "greedy": SamplingConfig(repetition_penalty=1.2, penalty_window=24),
    "sampled": SamplingConfig(temperature=0.9, seed=4, suppress_tokens=(int(IDS[0]), 1)),
    "filtered": SamplingConfig(temperature=1.1, top_p=0.9, top_k=20, repetition_penalty=1.1, penalty_window=9, seed=2),
}


@functools.cache
def plain(head_type, sampling):
    return decode(model(head_type), PROMPT, SAMPLING[sampling], SPECULATIONS["plain"], max_new_tokens=TOKENS)


@functools.cache
def model(head_type):
    return small_models.with_draft_vocab(small_models.successor_model(layers=1, head_type=head_type), IDS)


@pytest.mark.parametrize("sampling", list(SAMPLING))
@pytest.mark.parametrize("mode", ["partial", "fused"])
@pytest.mark.parametrize("head_type", ["chained", "sequential"])
def test_the_text_is_plain_decodings(head_type, mode, sampling):
    text = decode(model(head_type), PROMPT, SAMPLING[sampling], SPECULATIONS[mode], max_new_tokens=TOKENS)
    assert_same(text.tokens, plain(head_type, sampling).tokens)
    assert text.accepted_per_depth[1] > TOKENS / 20, "the heads' own depth"


@pytest.mark.parametrize("mode", ["partial", "fused"])
@pytest.mark.parametrize("head_type", ["chained", "sequential"])
def test_fewer_tokens_than_a_tree_s_usual_candidates_write_the_same_text(head_type, mode):
    """A backbone's guess is any token, the heads' are the draft vocabulary's two."""
    tree = (5, 2, 1, 2) if mode == "partial" else (1, 2, 1, 2)
    for chosen in (SPECULATIONS[mode], replace(SPECULATIONS[mode], tree=tree)):
        few = small_models.with_draft_vocab(small_models.successor_model(layers=1, head_type=head_type), IDS[:2])
        text = decode(few, PROMPT, SAMPLING["greedy"], chosen, max_new_tokens=24)
        assert_same(text.tokens, plain(head_type, "greedy").tokens[:24])


@pytest.mark.parametrize("sampling", list(SAMPLING))
def test_candidates_are_the_best_of_the_draft_vocabulary(sampling):
    """The sampler over the draft vocabulary against the whole one whose other logits are -inf."""
    rng = np.random.default_rng(3)
    drafted, config = DraftVocab.of(IDS), SAMPLING[sampling]
    texts = jnp.asarray(rng.integers(0, VOCAB, (3, 12)), jnp.int32)
    lengths = jnp.asarray([12, 7, 9], jnp.int32)
    noise = jnp.asarray(rng.gumbel(size=(3, 4, VOCAB)), jnp.float32) if config.temperature else None
    ranking = DraftSampler(
        next_position=lengths,
        last_positions=penalty.last_positions(texts, lengths, VOCAB),
        noise=noise,
        settings=settings_of(config, vocab=VOCAB, batch=3),
        features=features_of(config),
    )
    logits = rng.normal(size=(3, 2, VOCAB), scale=3.0).astype(np.float32)
    outside = np.setdiff1d(np.arange(VOCAB), IDS)
    logits[..., outside] = -np.inf
    above = [jnp.asarray(rng.integers(0, VOCAB, (3, 2)), jnp.int32)]
    at = jnp.ones((1,), jnp.int32)
    tokens, shares = ranking.best(jnp.asarray(logits), above, at, 5)
    found, scores = ranking.over(drafted).best(jnp.asarray(logits[..., drafted.ids]), above, at, 5)
    np.testing.assert_array_equal(found, tokens)
    np.testing.assert_allclose(scores, shares, rtol=1e-5, atol=1e-5)
    assert np.isin(found, IDS).all()
    later, _ = ranking.below(1).best(jnp.asarray(logits), above[:0], at, 5)
    if noise is not None:
        expected, _ = DraftSampler(
            lengths, ranking.last_positions, noise[:, 1:], ranking.settings, ranking.features
        ).best(jnp.asarray(logits), above[:0], at, 5)
        np.testing.assert_array_equal(later, expected)
