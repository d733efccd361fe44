"""Whole training runs of a few steps: killed and resumed, refused, stopped by a loss that is no number."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from small_runs import SMALL, checkpoint_in, paths_in, run, text_in, weights

import tokenswift_jax as ts
from tokenswift_jax.errors import UserError
from tokenswift_jax.training import checkpoints
from tokenswift_jax.training.checkpoints import one_run
from tokenswift_jax.training.metrics import read_metrics
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.trainer import TrainingStoppedError, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model, data and one uninterrupted run of six steps in `out`."""
    folder = tmp_path_factory.mktemp("runs")
    run(paths_in(folder))
    return folder


def command(folder: Path, output: str, **settings) -> list[str]:
    words = [sys.executable, "-m", "tokenswift_jax.train", "--model", folder / "model"]
    words += ["--output", folder / output, "--data-cache", folder / "cache"]
    for name, value in ({"data": folder / "data"} | settings).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", value]
    return list(map(str, words))


def test_losses_fall_and_the_checkpoint_generates(place):
    rows = read_metrics(place / "out" / "training" / "metrics.jsonl")
    losses = [row["train/head_1/loss"] for row in rows if "train/head_1/loss" in row]
    assert [row["step"] for row in rows if "train/head_1/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert losses[-1] < losses[0]
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["tokenswift"]["base"] == str((place / "model").resolve())
    assert config["tokenswift"]["num_heads"] == 2
    evaluated = next(row for row in rows if "eval/expected/fused_t0" in row)
    assert evaluated["step"] == 6
    assert 1 <= evaluated["eval/expected/fused_t1"] <= 3
    assert config["tokenswift"]["node_set"]["partial"][0] == [0], "the target's own best token is never wrong"
    assert not list((place / "out").glob("model*.safetensors")), "a frozen backbone is not copied"
    assert (place / "out" / "training" / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = ts.load(place / "out")
    greedy = ts.SamplingConfig(temperature=0.0)
    plain = ts.generate(model, [5, 6, 7], greedy, ts.SpeculationConfig(mode="autoregressive"), max_new_tokens=12)
    drafted = ts.generate(
        model,
        [5, 6, 7],
        greedy,
        ts.SpeculationConfig(mode="tokenswift", schedule="fused", tree=(1, 2, 2)),
        max_new_tokens=12,
    )
    assert drafted.token_ids == plain.token_ids


_LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("chained", "medusa")]


@pytest.mark.parametrize("head_type", ["sequential", *_LONG])
def test_a_draft_vocabulary_is_the_datas_most_frequent_tokens(tmp_path, head_type):
    paths, phases = paths_in(tmp_path), []

    def tell(name, done, *_):
        if not done:
            phases.append(name)

    printed = run(paths, draft_vocab=20, head_type=head_type, evaluate_steps=None, report=tell)
    assert phases == ["loading the model", "tokenising the data", "compiling the first step"]
    assert "draft vocabulary: 20 of" in printed
    model = ts.load(paths.output)
    words = Counter(word for file in (tmp_path / "data").iterdir() for word in file.read_text().split())
    frequent = {model.tokenizer.convert_tokens_to_ids(word) for word, _ in words.most_common(15)}
    ids = model.config.draft_vocab.ids.tolist()
    assert len(ids) == 20
    assert frequent < set(ids)
    logits = ts.draft_logits(model, [[5, 6, 7, 8, 9]])[0]
    assert np.isfinite(logits[:2, 1:, ids]).all()
    assert (np.delete(logits[:2, 1:], ids, axis=-1) == -np.inf).all()
    chosen = ts.SpeculationConfig(mode="tokenswift", schedule="fused", tree=(1, 2, 2))
    if head_type == "medusa":
        chosen = ts.SpeculationConfig(mode="medusa", tree=(1, 2, 2))
    greedy = ts.SamplingConfig(temperature=0.0)
    plain = ts.generate(model, [5, 6, 7], greedy, ts.SpeculationConfig(mode="autoregressive"), max_new_tokens=12)
    assert ts.generate(model, [5, 6, 7], greedy, chosen, max_new_tokens=12).token_ids == plain.token_ids
    # Training that continues keeps the vocabulary; another size chooses again; 0 is all.
    again = replace(paths, model=paths.output, output=tmp_path / "again")
    assert "draft vocabulary" not in run(again, head_type=head_type, evaluate_steps=0)
    assert ts.load(again.output).config.draft_vocab == model.config.draft_vocab
    whole = replace(paths, model=paths.output, output=tmp_path / "whole")
    run(whole, head_type=head_type, draft_vocab=0, evaluate_steps=0)
    assert ts.load(whole.output).config.draft_vocab is None


def test_a_killed_run_ends_up_as_one_that_was_not(place):
    """kill -9 while steps are running, then --resume: loss curve and weights are equal bit for bit."""
    text_in(place / "few", documents=12)  # too few to hold some out: nothing is examined, which has its own test
    settings = SMALL | {"max_steps": 16, "save_steps": 2, "what": "all", "data": place / "few"}
    whole = command(place, "whole", **settings)
    broken = command(place, "broken", **settings)
    subprocess.run(whole, check=True, cwd=ROOT, capture_output=True)
    process = subprocess.Popen(broken, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps, deadline = place / "broken" / "training" / "steps", time.monotonic() + 300
    while not (steps / "4").is_dir():
        assert process.poll() is None, "it ended by itself before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "broken" / "config.json").exists()
    resumed = subprocess.run([*broken, "--resume"], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "resumed at step" in resumed.stderr
    names = ("whole", "broken")
    curves = [(place / name / "training" / "metrics.jsonl").read_bytes() for name in names]
    assert curves[0] == curves[1]
    ends = [weights(place / name) for name in names]
    assert ends[0].keys() == ends[1].keys()
    assert any(name.startswith("model.layers") for name in ends[0])
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value.view(np.uint8), ends[1][name].view(np.uint8), err_msg=name)


def test_a_full_disk_is_one_line(place):
    """A limit on the size of files stands for the full disk: the checkpoint's arrays exceed it, nothing else does."""
    limited = ["bash", "-c", 'ulimit -f 6; exec "$@"', "bash"]  # KiB
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    words = limited + command(place, "full", **(SMALL | {"max_steps": 2}))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    recorded = r"error: cannot write a checkpoint \(File too large\); make room and continue with --resume, .*"
    assert re.fullmatch(recorded, last)
    # (The writer's own threads may have complained above it.)
    assert not (place / "full" / "config.json").exists()


def test_one_run_at_a_time_works_in_an_output(place):
    pytest.importorskip("fcntl")
    paths = paths_in(place)
    with (
        one_run(paths.output, paths.output / "training"),
        pytest.raises(UserError, match=r"output .*out is in use by another run; wait for it or name another folder"),
    ):
        run(paths, resume=True)
    with one_run(paths.output, paths.output / "training"):  # the refused call has left the lock as it was
        pass


def test_advice_to_make_room_is_for_a_full_disk_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_silence_threads", lambda: None)
    saved = checkpoints.Checkpoints(tmp_path / "steps")
    for code, advice in ((errno.ENOSPC, "); make room and continue"), (errno.EACCES, "); continue with resume=True")):
        failed = OSError(code, os.strerror(code), "a-file")
        monkeypatch.setattr(saved._manager, "wait_until_finished", Mock(side_effect=failed))
        with pytest.raises(UserError, match=re.escape(f"cannot write a checkpoint ({os.strerror(code)}{advice}")):
            saved.finish()
    monkeypatch.undo()
    saved.close()


def test_every_choice_that_matters_is_checked_on_resume(place):
    with pytest.raises(UserError, match="holds a training run; continue it with resume=True, or name another"):
        run(paths_in(place))
    with pytest.raises(
        UserError, match=r"started with other settings: learning_rate \(0.002 then, 0.003 now\); resume with"
    ):
        run(paths_in(place), resume=True, learning_rate=3e-3)
    # When something is kept is free.
    assert "resumed at step 6" in run(paths_in(place), resume=True, save_steps=3)


def test_gradients_of_micro_batches_are_those_of_one_batch(tmp_path):
    paths_in(tmp_path)
    few = (str(text_in(tmp_path / "few", documents=12)),)
    short = {"max_steps": 2, "warmup_steps": 0}
    run(replace(paths_in(tmp_path, "together"), data=few), batch_size=4, **short)
    run(replace(paths_in(tmp_path, "apart"), data=few), batch_size=2, gradient_accumulation_steps=2, **short)
    rows = [read_metrics(tmp_path / name / "training" / "metrics.jsonl") for name in ("together", "apart")]
    for name in ("train/head_1/loss", "train/head_2/loss", "train/gradient_norm"):
        a, b = ([row[name] for row in each if name in row] for each in rows)
        np.testing.assert_allclose(a, b, rtol=1e-5)  # float32 sums in another order


def test_a_frozen_backbone_stays_and_a_trained_one_moves(tmp_path):
    few = replace(paths_in(tmp_path, "all"), data=(str(text_in(tmp_path / "few", documents=12)),))
    run(few, what="all", max_steps=3)
    before, after = weights(tmp_path / "model"), weights(tmp_path / "all")
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) == len(before)
    assert json.loads((tmp_path / "all" / "config.json").read_text())["tokenswift"]["base"] is None


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    paths = paths_in(tmp_path)
    with pytest.raises(
        TrainingStoppedError, match=r"step \d+: the loss or its gradient is not a number; its batch begins"
    ):
        run(paths, learning_rate=1e30, max_steps=40, save_steps=1, clip_norm=1e30)
    rows = read_metrics(tmp_path / "out" / "training" / "metrics.jsonl")
    assert rows[-1]["train/gradient_norm"] is None or rows[-1]["train/head_1/loss"] is None
    kept = sorted(int(step.name) for step in (tmp_path / "out" / "training" / "steps").iterdir() if step.name.isdigit())
    assert kept, "the earlier checkpoints are valid"
    assert kept[-1] == rows[-1]["step"] - 1
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3, "heads": 3}, "max_length is 3; it must be a whole number of at least 8"),
        ({"epochs": 1, "max_steps": 3}, "give max_steps or epochs, not both"),
        ({"seed": 2**32}, "seed is 4294967296; it must be a whole number from 0 to 4294967295"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"distill_weight": 1.5}, "distill_weight is 1.5; it must be at least 0, at most 1"),
        ({"what": "tail"}, "what is 'tail'; known: heads, all"),
        ({"max_length": 10**6}, "exceeds the model's"),
        ({"self_distill_prompt": 4}, "self_distill_prompt without self_distill"),
        ({"self_distill_prompt": 24, "self_distill": 2}, "self_distill_prompt 24 leaves no token of max_length 24"),
        ({"draft_cache_prob": 0.5, "draft_cache": 512}, "draft_cache 512 holds every row of max_length 24"),
    ],
)
def test_wrong_settings_are_one_line(place, settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        run(paths_in(place, "refused"), **settings)
    assert not (place / "refused" / "config.json").exists()


def test_a_checkpoint_is_no_place_for_a_run(place):
    paths = paths_in(place)
    before = (place / "model" / "config.json").read_bytes()
    for model in (paths.model, checkpoint_in(place / "another")):
        with pytest.raises(UserError, match="model is a checkpoint already, whose config"):
            run(replace(paths, model=model, output=paths.model))
    assert (place / "model" / "config.json").read_bytes() == before
    assert not (place / "model" / "training").exists()


def test_trained_heads_whose_run_is_gone_are_not_replaced(place, tmp_path):
    paths = replace(paths_in(place), output=tmp_path / "out")
    shutil.copytree(place / "out", paths.output, ignore=shutil.ignore_patterns("training"))
    before = (paths.output / "heads.safetensors").read_bytes()
    for gone, named in (("", "config.json"), ("config.json", "heads.safetensors"), ("heads.safetensors", "training")):
        if gone:
            (paths.output / gone).unlink()
        for resume in (False, True):
            with pytest.raises(UserError, match=f"out is a checkpoint already, whose {named}.* a run would replace"):
                run(paths, resume=resume)
        if named != "training":
            assert (paths.output / "heads.safetensors").read_bytes() == before
    assert not (paths.output / "training").exists()


def test_a_run_that_resumes_with_other_documents_is_refused(place, tmp_path):
    own, other, say = paths_in(place), (str(text_in(tmp_path / "other", documents=3)),), io.StringIO()
    (tmp_path / "other" / "bad.jsonl").write_text("[\n")
    then, now = (f"'leaves {count} of 24 documents to train on'" for count in (23, 24))
    with pytest.raises(UserError, match=rf"other settings: eval_data \({then} then, {now} now\); resume with"):
        train(replace(own, held_out=other), TrainingSettings(**SMALL), resume=True, strict=False, say=say)
    assert re.search(r"held-out data: 3 documents, .* 1 broken, the first:", say.getvalue())
    (facts,) = (place / "out/training/steps/6/place").glob("metadata")
    content = json.loads(facts.read_text())
    assert content["facts"].pop("eval_data") == then.strip("'")
    before = facts.read_text()
    facts.write_text(json.dumps(content))  # as earlier versions wrote it
    assert "resumed at step 6" in run(own, resume=True)
    facts.write_text(before)


def test_a_model_without_tokenizer_and_empty_data_are_refused(tmp_path):
    paths = paths_in(tmp_path)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        run(paths)
    checkpoint_in(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        run(replace(paths, model=tmp_path / "other", data=(str(tmp_path / "empty"),)))


def test_documents_too_short_for_the_heads(tmp_path):
    paths = paths_in(tmp_path)
    text_in(tmp_path / "short", documents=30, words=2)
    with pytest.raises(UserError, match="every document is shorter than 4 tokens"):
        run(replace(paths, data=(str(tmp_path / "short"),)))


def test_the_command_says_one_line_and_exits_with_2(tmp_path):
    paths_in(tmp_path)
    done = subprocess.run(
        command(tmp_path, "out", max_steps=2, epochs=3), cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: give --max-steps or --epochs, not both")
    assert done.stderr.count("\n") == 1


def test_the_python_class_gives_a_checkpoint_that_loads(tmp_path):
    paths = paths_in(tmp_path)
    lines = [json.dumps({"text": file.read_text()}) for file in sorted((tmp_path / "data").iterdir())]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "not JSON"]))
    trainer = ts.SwiftTrainer(model_name=paths.model, max_length=24, heads=2, head_type="chained")
    say = io.StringIO()
    written = trainer.fine_tune(
        train_data=tmp_path / "x.jsonl",
        batch_size=8,
        epochs=1,
        output=tmp_path / "tuned",
        data_cache=tmp_path / "cache",
        progress=say,
    )
    assert "1 broken" in say.getvalue()
    assert f"{tmp_path / 'x.jsonl'}:25: " in say.getvalue()
    assert ts.load(written).config.num_draft_heads == 2
    with pytest.raises(UserError, match="unknown settings epoch;"):
        trainer.fine_tune(train_data=tmp_path / "x.jsonl", epoch=3)


def test_paper_defaults():
    settings = TrainingSettings()
    assert (settings.what, settings.learning_rate, settings.warmup_steps, settings.max_length) == (
        "heads",
        5e-3,
        50,
        8192,
    )
    assert settings.weight_decay == 0.1
    assert settings.betas == (0.9, 0.999)
