"""The evaluation as a whole: figures that agree with each other, what a person reads, what is stored."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

import tokenswift_jax as ts
from tests.small_models import VOCAB, successor_model, with_draft_vocab
from tokenswift_jax.checkpoint.directory import read_config
from tokenswift_jax.cli import phases
from tokenswift_jax.errors import UserError
from tokenswift_jax.evaluate import main
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.models.expected_tokens import parse_expected_tokens
from tokenswift_jax.models.node_sets import parse_node_sets
from tokenswift_jax.training.evaluation import evaluate, store
from tokenswift_jax.training.prediction import Replay

SIZES = {"prompts": 2, "prompt_tokens": 8, "continuation": 40}
WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (3, 48), dtype=np.int32)
SPECULATION = ts.SpeculationConfig(ngram_k=0)


@pytest.fixture(scope="module")
def examined():
    model = successor_model(cycle=12)
    return model, evaluate(model, WINDOWS, SPECULATION, budgets=(1, 4, 9), **SIZES)


def test_every_part_is_there_and_they_agree(examined):
    model, found = examined
    assert [one.schedule for one in found.schedules] == ["partial", "fused"]
    assert [c.sampling.temperature for c in found.continuations] == [0.0, 1.0]
    assert [list(p) for p in found.continuations[0].prompts] == WINDOWS[[0, 2], :8].tolist()
    for one in found.schedules:
        asked = replace(SPECULATION, mode="tokenswift", schedule=one.schedule)
        for prediction, written in zip(one.predictions, found.continuations, strict=True):
            assert prediction == Replay(model, written).predict(asked)
        sizes, values = zip(*one.by_budget, strict=True)
        assert sizes == (1, 4, 9)
        # A tree that holds another can accept no less in all, but where its runs end may cost a little.
        for smaller, larger in ((0, 1), (1, 2)):
            assert all(a <= b + 0.05 for a, b in zip(values[smaller], values[larger], strict=True))
    # Under `partial` the backbone guesses depth 1, and all that is committed fits the draft cache: it is never wrong.
    partial = found.schedules[0]
    assert partial.node_set[0] == (0,)
    assert all(path[0] == 0 for path in partial.node_set)
    assert partial.by_budget[0][1] == pytest.approx((2.0, 2.0), abs=0.06)  # one draft each time, cut at the end


def test_what_is_reported_is_what_was_found(examined):
    _, found = examined
    metrics = found.metrics()
    assert metrics["eval/head_2/loss"] == found.accuracy.heads[1].model_loss
    assert metrics["eval/head_3/text_top_2"] == found.accuracy.heads[2].text_top[1]
    assert metrics["eval/expected/fused_t1"] == found.schedules[1].predictions[1].expected_tokens
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["schedules"][0]["best_nodes"][1]["nodes"] == 4
    assert parse_node_sets(report["node_set"], 3).fused == found.schedules[1].node_set
    means = {nodes: sum(values) / len(values) for nodes, values in found.schedules[1].by_budget}
    assert dict(parse_expected_tokens(report["expected_tokens"], 3).curve) == pytest.approx(means, abs=5e-4)
    table = found.table()
    assert f"{found.schedules[0].predictions[0].expected_tokens:.2f}" in table
    assert f"{found.accuracy.heads[0].model_top[2]:.1%}" in table
    assert max(map(len, table.splitlines())) <= 110


def test_continuations_can_be_used_again(examined, monkeypatch):
    model, found = examined
    monkeypatch.setattr("tokenswift_jax.training.evaluation.write_continuations", None)  # calling it would raise
    again = evaluate(model, WINDOWS, SPECULATION, budgets=(1, 4, 9), continuations=found.continuations, prompt_tokens=8)
    assert again == found


def test_what_was_found_is_stored_and_nothing_else_changes(tmp_path):
    before = {"model_type": "llama", "tokenswift": {"num_heads": 3, "node_set": None, "base": None}, "z": [1]}
    (tmp_path / "config.json").write_text(json.dumps(before))
    found = {"node_set": {"fused": [[0], [0, 0]]}, "expected_tokens": {"1": 1.5}}
    store(tmp_path, found)
    after = read_config(tmp_path)
    assert {name: after["tokenswift"].pop(name) for name in found} == found
    before["tokenswift"].pop("node_set")
    assert after == before
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match='no "tokenswift" block'):
        store(tmp_path, {})


def test_heads_of_few_tokens_are_evaluated(examined):
    few = with_draft_vocab(successor_model(cycle=12), [3])
    found = evaluate(
        few, WINDOWS, SPECULATION, budgets=(1, 4), continuations=examined[1].continuations, prompt_tokens=8
    )
    assert all(set(head.model_top) == {head.model_top[0]} for head in found.accuracy.heads), "there is one guess"
    for one in found.schedules:
        assert {rank for path in one.node_set for rank in path} <= {0}


def test_too_little_text_is_a_one_line_error():
    model = successor_model(cycle=12)
    with pytest.raises(UserError, match="the longest has 48"):
        evaluate(model, WINDOWS, prompt_tokens=49)
    with pytest.raises(UserError, match="the longest has 0"):
        evaluate(model, WINDOWS[:0])


def test_figures_do_not_replace_the_data(tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text("a text")
    assert main(["--data", str(tmp_path), "--json", str(data)]) == 2
    assert main(["--data", "", "--json", str(tmp_path / "new")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"--json {data} would replace a file of the data" in first
    assert "--data: the name is empty" in second
    assert data.read_text() == "a text"


def test_figures_do_not_replace_the_checkpoint_and_broken_data_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tokenswift_jax.training.evaluation.evaluate", Mock(side_effect=UserError("no evaluation")))
    (tmp_path / "model").mkdir()
    base = json.loads((DEMO_MODEL / "config.json").read_text())
    base["tokenswift"] |= {"base": str(DEMO_MODEL)}
    (tmp_path / "model" / "config.json").write_text(json.dumps(base))
    shutil.copy(DEMO_MODEL / "heads.safetensors", tmp_path / "model")
    (tmp_path / "good").mkdir()
    (tmp_path / "good/a.txt").write_text("He walked slowly down the road.")
    (tmp_path / "good/b.jsonl").write_text("[\n{}\n")
    (tmp_path / "bad.jsonl").write_text("[\n")
    before = (DEMO_MODEL / "tokenizer.json").read_bytes()
    for words, named in (
        (["good", "--json", str(tmp_path / "model/config.json")], "config.json would replace a file of the checkpoint"),
        (["good", "--json", str(DEMO_MODEL / "tokenizer.json")], "tokenizer.json would replace a file of the checkp"),
        (["bad.jsonl"], "error: the data are empty: no document in "),
        (["good"], "2 broken, the first:\n  "),
    ):
        data, *more = words
        assert main(["--quiet", "--model", str(tmp_path / "model"), "--data", str(tmp_path / data), *more]) == 2
        assert named in capsys.readouterr().err
    assert (DEMO_MODEL / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "--data"),
        ("--data x --prompts 0", "at least 1"),
        ("--data x --tree 1;2", "list of whole numbers"),
        ("--data x --tree 3", "at least two depths"),
        ("--data {tmp}/nothing.txt", "nothing.txt"),
        ("--data x --json {tmp}/no/report.json", "no folder"),
        ("--data x --model {tmp}", "no config.json"),
        ("--data x --no-such-flag", "--no-such-flag"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(arguments, named, tmp_path, capsys, monkeypatch):
    """A slow machine says every ten seconds what it loads; those lines are not the error's."""
    monkeypatch.setattr(phases, "_SECONDS_BETWEEN_LINES", float("inf"))
    assert main(arguments.format(tmp=tmp_path).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_reports_and_stores(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (tmp_path / "text.txt").write_text("He walked slowly down the road, and did not look back at the house. " * 40)
    sizes = "--prompts 1 --prompt-tokens 24 --continuation 24 --node-budget 3 --ngram-k 0"
    paths = f"--model {tmp_path / 'model'} --data {tmp_path / 'text.txt'} --json {tmp_path / 'report.json'}"
    assert main(f"{paths} {sizes} --store".split()) == 0
    out, _ = capsys.readouterr()
    assert "tokens per iteration" in out
    report = json.loads((tmp_path / "report.json").read_text())
    stored = read_config(tmp_path / "model")["tokenswift"]
    assert {name: stored[name] for name in ("node_set", "expected_tokens")} == {
        name: report[name] for name in ("node_set", "expected_tokens")
    }
    assert stored["node_set"]["partial"][0] == [0]
    config = ts.load(tmp_path / "model").config
    assert config.node_sets == parse_node_sets(stored["node_set"], 3)
    assert config.expected_tokens == parse_expected_tokens(stored["expected_tokens"], 3)
