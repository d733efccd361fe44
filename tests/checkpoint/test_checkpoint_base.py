"""The base that heads trained for a model name: the place of its weights."""

import huggingface_hub
import pytest
from checkpoints_made_here import FAMILIES, copy, heads, set_config
from safetensors.numpy import save_file

import tokenswift_jax as ts
from tokenswift_jax.checkpoint.directory import base_directory, lasting_base, named_on_hub
from tokenswift_jax.training import trainer


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds owner/model."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, allow_patterns: FAMILIES / "llama2")


def test_a_directory_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    folder, _ = copy("llama2", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert named_on_hub("model") is None
    assert lasting_base(folder, None) == str(tmp_path / "model")
    assert lasting_base(folder.relative_to(tmp_path), None) == str(tmp_path / "model")


def test_a_model_of_the_hub_keeps_its_name(hub):
    assert named_on_hub("owner/model") == "owner/model"
    assert lasting_base(FAMILIES / "llama2", "owner/model") == "owner/model"


@pytest.mark.parametrize("base", ["owner/model", "../model"])
def test_heads_for_a_model_that_has_heads_name_the_model(base, hub, tmp_path):
    copy("llama2", tmp_path / "model")
    folder = tmp_path / "heads"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    set_config(folder, tokenswift={"num_heads": 2, "head_type": "chained", "node_set": None, "base": base})
    save_file(heads(32), folder / "heads.safetensors")
    for hub_id in (None, "owner/heads"):
        assert lasting_base(folder, hub_id) == {"../model": str(tmp_path / "model")}.get(base, base)
    assert base_directory(folder).resolve() == (FAMILIES / "llama2" if base == "owner/model" else tmp_path / "model")


@pytest.mark.parametrize("output", [None, "mine"])
def test_the_python_class_names_its_output_after_the_model(output, hub, monkeypatch):
    """The name is not that of the snapshot's folder, which is a commit."""
    seen = []
    monkeypatch.setattr(trainer, "train", lambda paths, *_, **__: seen.append(paths) or paths.output)
    written = ts.SwiftTrainer(model_name="owner/model").fine_tune(train_data="x.jsonl", output=output)
    assert str(written) == (output or "model-heads")
    assert seen[0].hub_id == "owner/model"
    assert seen[0].model == FAMILIES / "llama2"
