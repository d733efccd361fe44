"""The draft heads' logits in the verification's pass over the LM head: which plans share it, and its sums."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from flax import nnx

from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plan import MOST_LINES
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

CONFIG = small_models.config(64)
SEQUENTIAL = small_models.config(64, head_type="sequential")
MEDUSA = small_models.config(64, head_type="medusa")
FEW = replace(CONFIG, draft_vocab=DraftVocab.of(range(0, 64, 3)))
FUSED = {"mode": "tokenswift", "schedule": "fused"}


@pytest.mark.parametrize(
    ("config", "platform", "settings", "heads"),
    [
        (CONFIG, "gpu", FUSED, 3),
        (CONFIG, "tpu", FUSED | {"ngram_k": 0}, 3),
        (CONFIG, "gpu", {"mode": "medusa"}, 3),
        (MEDUSA, "gpu", FUSED, 3),
        (CONFIG, "gpu", FUSED | {"tree": (1, 3, 3, 3), "node_budget": 2}, 2),  # nodes of the third depth cannot be kept
        (CONFIG, "cpu", FUSED, 0),
        (SEQUENTIAL, "gpu", FUSED, 0),
        (FEW, "gpu", FUSED, 0),
        (CONFIG, "gpu", {"mode": "tokenswift", "schedule": "partial", "draft_cache": 64, "draft_sinks": 8}, 0),
        (CONFIG, "gpu", {"mode": "ngram"}, 0),
    ],
)
def test_which_plans_share_the_pass(config, platform, settings, heads):
    speculation = SpeculationConfig(**{"node_budget": 15} | settings)
    (named,) = speculative_plans(config, speculation, SamplingFeatures.GREEDY, platform)
    plan = named.plan
    assert plan.heads_verified(1) == heads
    assert replace(plan, draft_graph=small_models.random_model(48).graphdef).heads_verified(1) == 0
    if heads:
        most = MOST_LINES // (plan.rows * (1 + heads))
        assert [plan.heads_verified(batch) for batch in (most, most + 1)] == [heads, 0]


@pytest.mark.parametrize(
    ("settings", "prepares"),
    [
        (FUSED, True),
        ({"mode": "medusa"}, True),
        ({"mode": "tokenswift", "schedule": "partial", "draft_cache": 64, "draft_sinks": 8}, False),
        ({"mode": "ngram"}, False),
        ({"mode": "selfspec", "draft_cache": 64, "draft_sinks": 8}, False),
    ],
)
def test_what_the_verification_prepares_for_a_drafter(settings, prepares):
    """The logits of the heads, of each row as of the rows that drew the roots; else nothing."""
    (named,) = speculative_plans(CONFIG, SpeculationConfig(**settings), SamplingFeatures.GREEDY, "gpu")
    model, drafter = small_models.random_model(64), named.plan.drafter
    decoder = nnx.merge(model.graphdef, model.params)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, model.config.hidden_size)), jnp.float32)
    for heads in (0, 2):
        logits, prepared = drafter.score(decoder, hidden, heads)
        np.testing.assert_allclose(logits, decoder.logits(hidden), rtol=1e-5, atol=1e-5)
        first = drafter.prepare(decoder, hidden[:, 0], heads)
        assert len(prepared) == len(first) == (prepares and heads > 0)
        for rows, alone in zip(prepared, first, strict=True):
            np.testing.assert_allclose(rows.logits[:, 0], alone.logits, rtol=1e-5, atol=1e-5)
            assert alone.logits.shape == (2, heads, decoder.config.padded_vocab)


@pytest.mark.parametrize("head_type", ["chained", "medusa"])
def test_the_sums_are_those_of_two_products(head_type):
    """Up to rounding: the order of a sum depends on the number of rows."""
    model = small_models.random_model(48, head_type=head_type)
    decoder = nnx.merge(model.graphdef, model.params)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, model.config.hidden_size)), jnp.float32)
    logits, guesses = jax.jit(lambda x: decoder.logits_and_guesses(x, 3))(hidden)
    np.testing.assert_allclose(logits, decoder.logits(hidden), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guesses, decoder.draft_logits(hidden), rtol=1e-5, atol=1e-5)
    fewer = decoder.logits_and_guesses(hidden, 2)[1]
    np.testing.assert_allclose(fewer, guesses[:, :, :2], rtol=1e-5, atol=1e-5)
