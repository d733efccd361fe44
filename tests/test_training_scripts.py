"""scripts/profile_training.py and scripts/training_memory.py, on a tiny model and on this machine's own device."""

import json
import sys
from pathlib import Path

import jax
import pytest

from tests.training.small_runs import checkpoint_in, text_in
from tokenswift_jax.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import profile_training
import training_memory
from hardware import shapes


def test_profile_of_the_loop_counts_tokens_and_compiles_the_step_once(tmp_path, capsys):
    model, data = checkpoint_in(tmp_path / "model", "llama2"), text_in(tmp_path / "data", 6, 40)
    flags = ["--max-length", "16", "--batch-size", "2", "--steps", "3", "--rounds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        steps = []
        make_step = profile_training.trainer.make_step
        patch.setattr(profile_training.trainer, "make_step", lambda *a: steps.append(make_step(*a)) or steps[-1])
        row_file = tmp_path / "row.jsonl"
        status = profile_training.main(["--model", str(model), "--data", str(data), *flags, "--output", str(row_file)])
    assert status == 0
    row = json.loads(capsys.readouterr().out)
    assert row == json.loads(row_file.read_text())
    assert steps[0]._cache_size() == 2  # the loop's batches are the host's, the bare step's on the device
    loop, device = row["loop_seconds_per_step"], row["device_seconds_per_step"]
    assert row["share_not_in_the_device_step"] == pytest.approx(1 - device / loop, abs=1e-2)
    # Two rows of at most 16 tokens a step, of which at most a quarter is padding here: documents have 41 tokens.
    assert 24 <= row["tokens_per_second"] * loop <= 32.1
    assert (row["settings"]["max_steps"], row["settings"]["batch_size"]) == (6, 2)


def test_profile_refuses_one_step(capsys):
    assert profile_training.main(["--data", "nowhere", "--steps", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_memory_at_a_depth():
    assert training_memory.at_depth([(1, 100), (3, 160)], 32) == 100 + 31 * 30
    assert training_memory.at_depth([(1, 100), (3, 160)], 3) == 160
    with pytest.raises(SystemExit, match="give two depths"):
        training_memory.at_depth([(1, 100)], 32)


def test_memory_of_a_step_holds_its_parameters(monkeypatch):
    tiny = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = training_memory.MODEL
    monkeypatch.setitem(shapes._MODELS, model, shapes._MODELS[model] | tiny | {"vocab_size": 64})
    monkeypatch.setattr(training_memory, "device", lambda name: jax.devices()[0])
    settings = TrainingSettings(
        head_type="chained", max_length=16, max_steps=4, epochs=None, gradient_accumulation_steps=2, dtype="bfloat16"
    )
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention mixes bfloat16 and float32
        analysis = training_memory.compile_step("h200", settings, 1).memory_analysis()
    attention, mlp, norms = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32 * 48, 2 * 32  # nothing reads the final norm
    frozen = 2 * (attention + mlp + norms + 2 * 64 * 32)  # bfloat16
    heads = 3 * (32 * 32 + 2 * 32)
    trained = 3 * 4 * heads  # float32: masters and Adam's two moments
    batch = 3 * 2 * 16 * 4
    # A handful of counters come on top.
    assert 0 <= analysis.argument_size_in_bytes - (frozen + trained + batch) < 200
