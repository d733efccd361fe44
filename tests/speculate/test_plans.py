"""The plans that a configuration allows on a device."""

import pytest
import small_models

from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

CONFIG = small_models.config(64)
MODES = {
    "ngram": {"mode": "ngram"},
    "fused": {"mode": "tokenswift", "schedule": "fused"},
    "partial": {"mode": "tokenswift", "schedule": "partial", "draft_cache": 64, "draft_sinks": 8},
    "medusa": {"mode": "medusa"},
}


def rows(platform, **settings):
    (named,) = speculative_plans(CONFIG, SpeculationConfig(**settings), SamplingFeatures.GREEDY, platform)
    return named.plan.rows


@pytest.mark.parametrize("mode", list(MODES))
def test_a_cpu_verifies_few_rows_unless_it_is_asked_for_more(mode):
    chosen = MODES[mode]
    assert rows("cpu", **chosen) == 4
    assert rows("gpu", **chosen) > 16
    assert rows("cpu", **chosen, node_budget=20) == 21
    if mode == "ngram":
        assert rows("cpu", **chosen | {"ngram_k": 5}) == 16
    else:
        assert rows("cpu", **chosen, tree=(1, 2, 2, 2)) > 8


def test_a_self_drafted_chain_is_as_long_as_asked():
    chosen = {"mode": "selfspec", "draft_cache": 64, "draft_sinks": 8}
    assert rows("cpu", **chosen) == rows("gpu", **chosen) == 5
