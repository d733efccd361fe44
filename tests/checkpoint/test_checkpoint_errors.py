"""Every way a checkpoint can be wrong gets one line that says what."""

import fnmatch
import json

import huggingface_hub
import numpy as np
import pytest
from checkpoints_made_here import FAMILIES, copy, heads, set_config
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from tokenswift_jax.checkpoint import load_decoder, open_checkpoint, resolve
from tokenswift_jax.errors import UserError


def truncate(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def save_with(**extra):
    def spoil(folder, tensors):
        named = {name.replace("__", "."): values for name, values in extra.items()}
        save_file(tensors | named, folder / "model.safetensors")

    return spoil


def missing(folder, tensors):
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def broken_index(folder, tensors):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def lying_index(folder, tensors):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys([*tensors, "model.extra"], "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def with_two_values(folder, tensors):
    save_file(tensors, folder / "a.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"] + 1}, folder / "b.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def pointer_of(name):
    def spoil(folder, tensors):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    return spoil


def heads_of(size, count=2, **fields):
    def spoil(folder, tensors):
        save_file(heads(size, count), folder / "heads.safetensors")
        set_config(folder, **fields)

    return spoil


BLOCK = {"num_heads": 2, "head_type": "chained"}
# what is done to a good checkpoint -> what the one line must say
SPOILED = {
    "missing tensors": (missing, ["missing: model.layers.1.mlp.up_proj.weight, model.norm.weight"]),
    "extra tensors": (
        save_with(score__weight=np.ones(2)),
        ["extra: score.weight"],
    ),
    "unannounced bias": (
        save_with(model__layers__0__mlp__up_proj__bias=np.ones(64)),
        ["extra: model.layers.0.mlp.up_proj.bias"],
    ),
    "mis-shaped": (
        lambda folder, tensors: set_config(folder, intermediate_size=65),
        ["mis-shaped: model.layers.0.mlp.down_proj.weight [32, 64] instead of [32, 65]", "up_proj"],
    ),
    "many problems are cut short": (
        lambda folder, tensors: set_config(folder, num_hidden_layers=9),
        ["missing: model.layers.2.input_layernorm.weight", "and 55 more"],
    ),
    "truncated": (
        lambda folder, tensors: truncate(folder / "model.safetensors"),
        ["model.safetensors is not a readable safetensors file"],
    ),
    "empty file": (
        lambda folder, tensors: (folder / "model.safetensors").write_bytes(b""),
        ["model.safetensors is not a readable safetensors file"],
    ),
    "not safetensors": (
        lambda folder, tensors: (folder / "model.safetensors").write_bytes(b"x" * 99),
        ["model.safetensors is not a readable safetensors file"],
    ),
    "PyTorch only": (
        lambda folder, tensors: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ["PyTorch weights only", "safetensors"],
    ),
    "no weights": (
        lambda folder, tensors: (folder / "model.safetensors").unlink(),
        ["no weights", "model.safetensors"],
    ),
    "integer weights": (
        lambda folder, tensors: save_file(
            tensors | {"lm_head.weight": np.ones((128, 32), np.int8)}, folder / "model.safetensors"
        ),
        ["lm_head.weight", "I8", "BF16, F16, F32, F64"],
    ),
    "one tensor, two values": (with_two_values, ["model.norm.weight has other values in", "a.safetensors", "b.safe"]),
    "weights not fetched": (pointer_of("model.safetensors"), ["model.safetensors is a pointer", "git lfs pull"]),
    "JSON not fetched": (pointer_of("config.json"), ["config.json is a pointer", "git lfs pull"]),
    "missing shard": (broken_index, ["model-00002-of-00002.safetensors"]),
    "index names what shards lack": (lying_index, ["model.extra"]),
    "index is no index": (
        lambda folder, tensors: [
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors.index.json").write_text("[1]"),
        ],
        ["index.json is not an index"],
    ),
    "heads for another hidden size": (
        heads_of(48, tokenswift=BLOCK),
        ["draft heads made for another hidden size than 32", "[48, 48] instead of [32, 32]"],
    ),
    "heads that nobody announced": (heads_of(32), ["extra: medusa_layers.0", "config.json names 0 draft heads"]),
    "fewer heads than announced": (heads_of(32, 1, tokenswift=BLOCK), ["missing: medusa_layers.1"]),
    "no heads but announced": (
        lambda folder, tensors: set_config(folder, medusa_heads=1),
        ["missing: medusa_layers.0"],
    ),
    "config.json is not JSON": (
        lambda folder, tensors: (folder / "config.json").write_text("{"),
        ["config.json is not JSON"],
    ),
    "config.json is not an object": (
        lambda folder, tensors: (folder / "config.json").write_text("[]"),
        ["config.json must hold a JSON object"],
    ),
    "base is not there": (heads_of(32, tokenswift=BLOCK | {"base": "../nowhere"}), ["no such directory: ../nowhere"]),
    "base is no name": (heads_of(32, tokenswift=BLOCK | {"base": 3}), ['"base"', "3"]),
    "base of a base": (heads_of(32, tokenswift=BLOCK | {"base": "."}), ["has a base itself"]),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_checkpoint_gets_one_line(tmp_path, name):
    spoil, parts = SPOILED[name]
    folder, tensors = copy("llama2", tmp_path / "model")
    spoil(folder, tensors)
    with pytest.raises(UserError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_places_that_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_text("")
    for place, part in [
        (tmp_path, "no config.json"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "nowhere", "no such directory"),
        ("nowhere", "no such directory"),
    ]:
        with pytest.raises(UserError, match=part):
            resolve(place)


def test_a_hub_id_without_the_hub(monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="owner/model cannot be downloaded: the hub cannot be reached") as caught:
        resolve("owner/model")
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded_without_foreign_files(monkeypatch):
    asked = {}

    def download(hub_id, allow_patterns):
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(FAMILIES / "llama2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/model") == FAMILIES / "llama2"
    assert asked["hub_id"] == "owner/model"
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    wanted.append("additional_chat_templates/tool_use.jinja")
    foreign = ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "README.md"]
    hit = [name for name in wanted + foreign if any(fnmatch.fnmatch(name, one) for one in asked["patterns"])]
    assert hit == wanted


@pytest.mark.parametrize(("dtype", "part"), [("int8", "unknown dtype 'int8'"), ("float64", "JAX_ENABLE_X64")])
def test_bad_dtypes(dtype, part):
    with pytest.raises(UserError, match=part):
        load_decoder(FAMILIES / "llama2", dtype=dtype)


def test_a_cast_that_overflows_is_refused(tmp_path):
    folder, tensors = copy("llama2", tmp_path / "model")
    tensors = {name: values.astype(np.float32) for name, values in tensors.items()}
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight .* beyond the range of float16"):
        load_decoder(folder, dtype="float16")
