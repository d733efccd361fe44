"""Draft heads counted on a prompt: budgets that exceed the heads' own tree, and heads that foresee nothing."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_models

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.heads_foresight import HeadsForesight
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

VOCAB = 64


def counted(text, hidden):
    """Tokens an iteration by node budget, for a prompt with these hidden states before each of its tokens."""
    model = small_models.random_model(vocab=VOCAB)
    speculation = SpeculationConfig(mode="tokenswift", schedule="fused")
    named = speculative_plans(model.config, speculation, SamplingFeatures.GREEDY, "accelerator", (3, 15, 63))
    foresight = HeadsForesight(model, named)
    prefill = SimpleNamespace(rooted=[text], hidden=lambda row: (hidden, 0))
    foresight.count(prefill, CompileCache(), 1)
    return {one.plan.rows - 1: foresight.tokens_an_iteration(one) for one in named}


def test_a_random_text_accepts_next_to_nothing_at_any_budget():
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB, 120).tolist()
    hidden = jax.random.normal(jax.random.key(0), (120, small_models.config(VOCAB).hidden_size))
    found = counted(text, hidden)
    assert max(found) > 40, "one budget is larger than the tree of the heads alone"
    assert sorted(found.values()) == list(found.values()), "more nodes accept no less"
    for tokens in found.values():
        assert tokens == pytest.approx(1.0, abs=0.2)
