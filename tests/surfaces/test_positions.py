"""How long a text may be: one limit for generating, scoring and training, and advice that keeps the model's RoPE."""

import json
import re
import shutil

import numpy as np
import pytest

import tokenswift_jax as ts
from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax.cli.generate import main
from tokenswift_jax.training.learner import load_learner
from tokenswift_jax.training.settings import TrainingSettings

PLAIN = ts.SpeculationConfig(mode="autoregressive")
BASE = {"max_position_embeddings": 64, "rope_theta": 10000.0, "rope_parameters": None}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCHED = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
    "yarn beside": {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
    "linear, declared": {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 256}
    | {"original_max_position_embeddings": 64},
}


def checkpoint(folder, **fields):
    shutil.copytree(FAMILIES / "llama2", folder)
    config = json.loads((folder / "config.json").read_text()) | BASE | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", STRETCHED)
def test_a_stretched_config_has_factor_times_the_trained_length(tmp_path, name):
    model = ts.load(checkpoint(tmp_path / "m", **STRETCHED[name]))
    ids = np.arange(256) % 60
    assert ts.score(model, [ids.tolist()]).shape[1] == 256
    assert ts.generate(model, ids[:200].tolist(), speculation=PLAIN, max_new_tokens=56).finish_reason == "length"
    with pytest.raises(ts.UserError, match="holds 1 to 256 tokens, not"):
        ts.score(model, [[1] * 257])
    with pytest.raises(ts.UserError, match="exceeds the model's 256 positions"):
        ts.generate(model, ids[:200].tolist(), max_new_tokens=57)
    settings = {"what": "heads", "batch_size": 1}
    load_learner(tmp_path / "m", TrainingSettings(max_length=256, draft_cache=64, **settings))
    with pytest.raises(ts.UserError, match="max_length 257 exceeds the model's 256 positions"):
        load_learner(tmp_path / "m", TrainingSettings(max_length=257, draft_cache=64, **settings))


def advised(message):
    return json.loads(re.search(r"rope_override=(\{.*?\})", message)[1])


@pytest.mark.parametrize("name", STRETCHED)
def test_following_the_advice_works_and_keeps_the_type(tmp_path, name):
    folder = checkpoint(tmp_path / "m", **STRETCHED[name])
    model = ts.load(folder)
    with pytest.raises(ts.UserError, match=f"its RoPE .type {model.config.rope.type}") as refused:
        ts.generate(model, [1] * 10, max_new_tokens=600)
    stretched = ts.load(folder, rope_override=advised(str(refused.value)))
    assert stretched.config.rope.type == model.config.rope.type
    assert stretched.config.rope.theta == model.config.rope.theta
    assert stretched.config.max_position_embeddings >= 610
    assert ts.generate(stretched, [1] * 600, speculation=PLAIN, max_new_tokens=10).generated_tokens == 10
    with pytest.raises(ts.UserError) as refused:  # the advice for a run that already follows advice
        ts.generate(stretched, [1] * 10, max_new_tokens=2000)
    longest = ts.load(folder, rope_override=advised(str(refused.value))).config
    assert (longest.rope.type, longest.max_position_embeddings >= 2010) == (model.config.rope.type, True)


def test_a_length_that_nobody_asked_for_is_no_more_than_fits(tmp_path):
    override = {"rope_type": "yarn", "factor": np.float32(1.25)}
    for model, longest in (
        (ts.load(checkpoint(tmp_path / "m")), 64),
        (ts.load(tmp_path / "m", rope_override=override), 80),
    ):
        text = ts.generate(
            model, [1] * (longest - 3), None, PLAIN, max_new_tokens=None, journal=tmp_path / f"{longest}"
        )
        assert (text.generated_tokens, text.finish_reason) == (3, "length")
        with pytest.raises(ts.UserError, match=f"{longest} positions; ask for less"):
            ts.generate(model, [1] * longest, None, PLAIN, max_new_tokens=None)


def test_a_model_that_is_not_stretched_is_advised_to_use_yarn(tmp_path, capsys, monkeypatch):
    folder = checkpoint(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text("[1, 2, 3]")
    words = ["--model", str(folder), "--prompt-ids", "p.json", "--max-new-tokens", "300", "--quiet"]
    assert main(words) == 2
    reported = capsys.readouterr().err
    override = re.search(r"--rope-override '(.*?)'", reported)[1]
    assert json.loads(override) == {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64}
    assert main([*words, "--rope-override", override, "--mode", "autoregressive"]) == 0


def test_dual_chunk_attention_is_plain_within_a_chunk_and_refused_by_name_beyond(tmp_path):
    """Qwen2.5-1M's fields, smaller."""
    block = {"chunk_size": 128, "local_size": 16, "original_max_position_embeddings": 96}
    folder = checkpoint(tmp_path / "m", max_position_embeddings=512, dual_chunk_attention_config=block)
    model = ts.load(folder)
    plain = ts.load(checkpoint(tmp_path / "plain", max_position_embeddings=512))
    prompt = list(range(40))
    outs = [ts.generate(one, prompt, speculation=PLAIN, max_new_tokens=56).token_ids for one in (model, plain)]
    assert outs[0] == outs[1]
    refusal = (
        "exceeds 96 positions; longer texts need dual_chunk_attention_config of config.json, which is not supported"
    )
    with pytest.raises(ts.UserError, match=refusal):
        ts.generate(model, prompt, max_new_tokens=57)
    with pytest.raises(ts.UserError, match="holds 1 to 96 tokens"):
        ts.score(model, [[1] * 97])
    stretched = ts.load(folder, rope_override={"rope_type": "yarn", "factor": 4.0})
    with pytest.raises(ts.UserError, match=refusal):
        ts.generate(stretched, prompt, max_new_tokens=57)
