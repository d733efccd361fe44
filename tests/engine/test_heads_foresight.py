"""Drafts of heads counted on the prompt, against the acceptance of the same text as the device decodes it."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_models

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.heads_foresight import HeadsForesight
from tokenswift_jax.engine.session import Session
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

GREEDY = SamplingConfig(temperature=0.0)
VOCAB = 64
TREE = {"tree": (1, 2, 2, 2), "ngram_k": 0}


@pytest.mark.parametrize(("head_type", "budget"), [("chained", 3), ("sequential", 7)])
def test_the_count_is_the_acceptance_of_the_device(head_type, budget):
    """A greedy text, decoded with heads; then its last tokens are a prompt, on which the heads are counted."""
    model = small_models.successor_model(head_type=head_type)
    chosen = SpeculationConfig(mode="tokenswift", schedule="fused", node_budget=budget, **TREE)
    run = Session(model, batch_of([[5, 17, 3]], GREEDY, max_new_tokens=300), chosen)
    steps = list(run)
    text = [5, 17, 3, *np.concatenate([step.rows[0].log.token_ids for step in steps]).tolist()]
    offsets = np.concatenate([step.rows[0].log.offsets for step in steps])

    auto = replace(chosen, mode="auto", schedule="auto")
    again = Session(model, batch_of([text], GREEDY, max_new_tokens=8), auto)
    again._prefill()
    (fused,) = [named for named in again._policy._chooser.plans if named.schedule == "fused"]
    counted = again._heads.tokens_an_iteration(fused)
    measured = 64 / (offsets[-64:] == 0).sum()
    assert counted == pytest.approx(measured, rel=0.1)
    again.close()


@pytest.mark.parametrize("prompts", [[[5]], [[5, 17, 3]], [[5] * 40, [17, 3]]])
def test_a_prompt_of_a_few_tokens_counts_nothing(prompts):
    model = small_models.successor_model()
    run = Session(model, batch_of(prompts, GREEDY, max_new_tokens=8), SpeculationConfig(**TREE))
    run._prefill()
    assert {run._heads.tokens_an_iteration(named) for named in run._policy._chooser.plans} == {None}
    run.close()


def counted(text, hidden):
    """Tokens an iteration by node budget, for a prompt with these hidden states before each of its tokens."""
    model = small_models.random_model(vocab=VOCAB)
    speculation = SpeculationConfig(mode="tokenswift", schedule="fused")
    named = speculative_plans(model.config, speculation, SamplingFeatures.GREEDY, "accelerator", (3, 15, 63))
    foresight = HeadsForesight(model, named)
    positions = {"reused": 0, "total": len(text) - 1}
    prefill = SimpleNamespace(rooted=[text], hidden=lambda rows: [(np.asarray(hidden), 0)], **positions)
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
