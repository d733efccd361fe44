"""Arguments of another type than the documented one get the one line, and whole numbers may be NumPy's."""

import json

import numpy as np
import pytest

import tokenswift_jax as ts
from tokenswift_jax.training.settings import TrainingSettings, read_settings


@pytest.mark.parametrize("tree", [[1, 2, 1, 1], np.array([1, 2, 1, 1]), (np.int64(1), 2, 1, 1)])
def test_a_tree_may_be_any_list_and_is_a_key_of_programs(tree):
    assert hash(ts.SpeculationConfig(tree=tree)) == hash(ts.SpeculationConfig(tree=(1, 2, 1, 1)))


def test_whole_numbers_may_be_numpy_s():
    made = ts.SpeculationConfig(node_budget=np.int64(3), draft_block=np.int32(64))
    assert made == ts.SpeculationConfig(node_budget=3, draft_block=64)
    settings = TrainingSettings(batch_size=np.int64(2), clip_norm=np.float32(0.5), betas=[0, np.float32(0.5)])
    same = TrainingSettings(batch_size=2, clip_norm=0.5, betas=(0.0, 0.5))
    assert json.dumps(settings.to_json()) == json.dumps(same.to_json())


@pytest.mark.parametrize(
    "fields",
    [
        {"tree": 5},
        {"tree": "1234"},
        {"tree": (True, 2)},
        {"draft_sinks": None},
        {"draft_cache": "4096"},
        {"ngram_k": None},
        {"draft_block": 16.0},
        {"draft_block": [16]},
        {"node_budget": True},
    ],
)
def test_wrong_types_of_speculation(fields):
    (name,) = fields
    with pytest.raises(ts.UserError, match=f"^{name} ") as caught:
        ts.SpeculationConfig(**fields)
    assert caught.value.arguments == (name,)


@pytest.mark.parametrize("betas", [5, "ab", ["a", 1], None, {}, [0.9], [0.9, 1], [True, 0.5], [0.9, float("nan")]])
def test_wrong_betas_of_a_configuration(tmp_path, betas):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"betas": betas}))
    with pytest.raises(ts.UserError, match=r"run\.json: betas are .*; two numbers"):
        read_settings(file, {})


@pytest.mark.parametrize("name", ["learning_rate", "clip_norm", "weight_decay", "head_learning_rate"])
def test_numbers_of_training_are_finite(name):
    with pytest.raises(ts.UserError, match=f"{name} is inf; it must be a finite number"):
        TrainingSettings(**{name: float("inf")})


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: ts.load(5), "5 is no name of a file or folder"),
        (lambda: ts.load(report=None), "report is None; it must be a function"),
        (lambda: ts.load(length="x"), "length is 'x'; it must be a whole number"),
        (lambda: ts.stream(ts.load(), "x", max_new_tokens=1, mesh_report=5), "mesh_report is 5; it must be a function"),
        (lambda: ts.SwiftTrainer().fine_tune(5), "the data is 5; it must be a file"),
        (lambda: ts.SwiftTrainer().fine_tune("x", eval_data=[5]), r"the data is \[5\]; it must be a file"),
    ],
)
def test_wrong_types_of_calls(call, part):
    with pytest.raises(ts.UserError, match=part):
        call()
