"""The plans that a configuration allows on a device."""

from dataclasses import replace

import pytest
import small_models

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.models.node_sets import NodeSets
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


def test_heads_draft_no_more_candidates_than_their_vocabulary_has():
    few = replace(CONFIG, draft_vocab=DraftVocab.of([3, 5]))
    sets = NodeSets(partial=((0,), (3,), (0, 2), (3, 1)), fused=((0,), (1,), (2,), (0, 1), (2, 0)))

    def widths(config, mode, **settings):
        asked = SpeculationConfig(**MODES[mode], **settings)
        return speculative_plans(config, asked, SamplingFeatures.GREEDY, "gpu")[0].plan.tree.widths

    assert (widths(CONFIG, "fused"), widths(few, "fused"), widths(few, "medusa")) == ((3, 3, 3), (2, 2, 2), (2, 2, 2))
    assert (widths(CONFIG, "partial"), widths(few, "partial")) == ((1, 3, 3, 3), (1, 2, 2, 2))
    assert (widths(few, "fused", tree=(1, 2, 2, 2)), widths(few, "partial", tree=(9, 2, 2, 2)))[1] == (9, 2, 2, 2)
    for mode, vocabulary in (("fused", few), ("partial", few)):
        with pytest.raises(UserError, match="tree 1,2,2,3 asks for more candidates than the draft vocabulary's 2"):
            widths(vocabulary, mode, tree=(1, 2, 2, 3))
    with pytest.raises(UserError, match="tree 65,2,2,2 asks for more candidates than the vocabulary's 64"):
        widths(few, "partial", tree=(65, 2, 2, 2))
    stored = replace(few, node_sets=sets)
    assert (widths(stored, "partial"), widths(stored, "fused")) == ((4, 2), (2, 2))


def test_a_self_drafted_chain_is_as_long_as_asked():
    chosen = {"mode": "selfspec", "draft_cache": 64, "draft_sinks": 8}
    assert rows("cpu", **chosen) == rows("gpu", **chosen) == 5
