"""Node sets of config.json: what they may hold, and where they end up."""

import itertools

import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.node_sets import NodeSets, parse_node_sets, product_within, widths, within_budget
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
STORED = {"partial": [[0], [1], [0, 0], [0, 0, 2]], "fused": [[0], [0, 3]]}


def config(node_set):
    return model_config(LLAMA | {"tokenswift": {"num_heads": 2, "node_set": node_set}})


def test_a_node_set_is_read_and_hashable():
    sets = config(STORED).node_sets
    assert sets == NodeSets(partial=((0,), (1,), (0, 0), (0, 0, 2)), fused=((0,), (0, 3)))
    assert hash(sets) == hash(parse_node_sets(STORED, 2))
    assert (widths(sets.partial), widths(sets.fused)) == ((2, 1, 3), (1, 4))
    assert config(None).node_sets == config({}).node_sets == NodeSets()


@pytest.mark.parametrize(
    ("node_set", "words"),
    [
        ([[0], [1]], ["node_set", "partial", "fused"]),
        ({"sideways": [[0]]}, ["partial", "fused"]),
        ({"fused": []}, ["node_set.fused", "[[0], [0, 0], [1]]"]),
        ({"fused": "0,1"}, ["node_set.fused", "'0,1'"]),
        ({"fused": [[0], []]}, ["the path []", "ranks"]),
        ({"fused": [0]}, ["the path 0", "ranks"]),
        ({"fused": [[-1]]}, ["the path [-1]", "whole numbers from 0"]),
        ({"fused": [[0.0]]}, ["the path [0.0]", "whole numbers from 0"]),
        ({"fused": [[True]]}, ["the path [True]", "whole numbers from 0"]),
        ({"fused": [[0], [0, 0], [0, 0, 0]]}, ["[0, 0, 0] of 3 depths", "guess 2"]),
        ({"partial": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]}, ["4 depths", "guess 3"]),
        ({"partial": [[0], [1], [0]]}, ["[0] twice"]),
        ({"partial": [[0], [1, 0], [1]]}, ["[1, 0] without [1] before it"]),
    ],
)
def test_bad_node_sets_are_refused(node_set, words):
    with pytest.raises(UserError) as caught:
        config(node_set)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def shape(speculation, node_set=STORED):
    (named,) = speculative_plans(config(node_set), speculation, SamplingFeatures.SAMPLED, "cpu")
    return named.plan.tree


def test_the_set_of_the_schedule_is_the_tree_unless_one_is_asked_for():
    partial = SpeculationConfig(mode="tokenswift", schedule="partial")
    assert shape(partial).node_set == ((0,), (1,), (0, 0), (0, 0, 2))
    assert shape(SpeculationConfig(mode="medusa")).node_set == ((0,), (0, 3))
    assert shape(SpeculationConfig(mode="medusa")).rows == 3
    asked = shape(SpeculationConfig(mode="medusa", tree=(1, 2, 2)))
    assert (asked.node_set, asked.widths) == (None, (2, 2))
    assert shape(SpeculationConfig(mode="medusa", node_budget=12), None).widths == (3, 3)
    partial = SpeculationConfig(mode="tokenswift", schedule="partial", node_budget=12)
    assert shape(partial, {"fused": STORED["fused"]}).widths == (1, 3, 3)


@pytest.mark.parametrize(
    ("budget", "kept"), [(1, ((0,),)), (2, ((0,), (1,), (0, 0))), (3, ((0,), (1,), (0, 0), (0, 0, 2)))]
)
def test_a_budget_leaves_out_paths_that_it_cannot_hold(budget, kept):
    tight = shape(SpeculationConfig(mode="tokenswift", schedule="partial", node_budget=budget))
    assert (tight.node_set, tight.widths, tight.rows) == (kept, widths(kept), budget + 1)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 4, 2), (1, 3, 3, 3)])
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 7, 16])
def test_paths_of_a_product_within_a_budget(sizes, budget):
    every = [path for depth in range(len(sizes)) for path in itertools.product(*map(range, sizes[: depth + 1]))]
    assert set(product_within(sizes, budget)) == set(within_budget(tuple(every), budget, shared=True))
