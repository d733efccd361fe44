"""Saving, and the files beside the weights: tokenizer, generation defaults, fingerprint."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints_made_here import FAMILIES, add_tokenizer, copy, heads, set_config
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tokenswift_jax.checkpoint import (
    fingerprint,
    fingerprints,
    known_fingerprint,
    load_decoder,
    load_generation_config,
    load_tokenizer,
    open_checkpoint,
    save,
    state_tensors,
    target_fingerprint,
)
from tokenswift_jax.checkpoint.load import abstract_decoder
from tokenswift_jax.checkpoint.tensors import Tensor, from_array, read_file, rows_of, write_file
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.prompt import encode


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_decoder_saved_and_loaded_is_the_same(tmp_path, dtype):
    hf_config = json.loads((FAMILIES / "qwen3" / "config.json").read_text())
    hf_config["tokenswift"] = {"num_heads": 2, "head_type": "chained", "node_set": None}
    graph, abstract = nnx.split(abstract_decoder(model_config(hf_config), jnp.dtype(dtype)))
    rng = np.random.default_rng(0)
    drawn = [(p, v.replace(jnp.asarray(rng.normal(size=v.shape), dtype))) for p, v in nnx.to_flat_state(abstract)]
    state = nnx.from_flat_state(drawn)
    save(tmp_path, hf_config, state_tensors(state))

    config, loaded_graph, loaded = load_decoder(tmp_path, dtype=dtype)
    assert config == model_config(hf_config)
    assert loaded_graph == graph
    for (path, expected), (loaded_path, actual) in zip(drawn, nnx.to_flat_state(loaded), strict=True):
        assert path == loaded_path
        np.testing.assert_array_equal(actual[...], expected[...])
    stored = load_file(tmp_path / "heads.safetensors")
    assert sorted(stored) == sorted(heads(32))
    kernel = dict(drawn)[("draft_heads", "heads", 1, "linear", "kernel")][...]
    np.testing.assert_array_equal(stored["medusa_layers.1.linear.weight"], kernel.T)


def test_written_files_are_what_safetensors_reads(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((3,), np.float16), "c": np.zeros((2, 0))}
    write_file(tmp_path / "x.safetensors", [from_array(name, values) for name, values in arrays.items()])
    loaded = load_file(tmp_path / "x.safetensors")
    assert {name: (v.dtype, v.tolist()) for name, v in loaded.items()} == {
        name: (v.dtype, v.tolist()) for name, v in arrays.items()
    }
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    again = {tensor.name: tensor for tensor in read_file(tmp_path / "x.safetensors")}
    np.testing.assert_array_equal(again["b"].read((slice(1, 2), slice(0, 2))), [[3, 4]])
    assert again["b"].nbytes == 24


def test_a_large_model_is_split_into_indexed_shards(tmp_path):
    checkpoint = open_checkpoint(FAMILIES / "llama2")
    save(tmp_path, checkpoint.hf_config, list(checkpoint.tensors.values()), shard_bytes=20_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    original = load_file(FAMILIES / "llama2" / "model.safetensors")
    merged = {}
    for shard in shards:
        part = load_file(shard)
        assert sum(values.nbytes for values in part.values()) <= 20_000
        assert {name for name, place in index["weight_map"].items() if place == shard.name} == set(part)
        merged |= part
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in original.values())
    assert {n: v.tobytes() for n, v in merged.items()} == {n: v.tobytes() for n, v in original.items()}
    assert not (tmp_path / "model.safetensors").exists()


def test_tokenizer_own_then_the_bases_then_none(tmp_path):
    base, _ = copy("llama2", tmp_path / "base")
    folder, _ = copy("llama2", tmp_path / "heads")
    save_file(heads(32), folder / "heads.safetensors")
    set_config(folder, tokenswift={"num_heads": 2, "head_type": "chained", "base": "../base"})
    assert load_tokenizer(folder) is None
    assert load_generation_config(folder) == {}
    add_tokenizer(base, 128)
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    assert load_tokenizer(folder).encode("w5 w127") == [5, 127]  # 128 entries fill a vocabulary of 128
    assert load_generation_config(folder) == {"temperature": 0.5}
    add_tokenizer(folder, 100)
    assert len(load_tokenizer(folder)) == 100


def test_a_tokenizer_beyond_the_vocabulary_is_refused_where_a_text_uses_it(tmp_path):
    folder, _ = copy("llama2", tmp_path / "model")
    add_tokenizer(folder, 129)
    tokenizer = load_tokenizer(folder)
    assert encode("w5 w127", tokenizer, 128) == [5, 127]
    with pytest.raises(UserError, match=r"token id 128 of the prompt is outside the vocabulary of 0\.\.127"):
        encode("w5 w128", tokenizer, 128)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "unheard of"}}'])
def test_a_broken_tokenizer_is_one_line(tmp_path, content):
    folder, _ = copy("llama2", tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_broken_generation_config_is_one_line(tmp_path):
    folder, _ = copy("llama2", tmp_path / "model")
    (folder / "generation_config.json").write_text("temperature: 1")
    with pytest.raises(UserError, match=r"generation_config.json is not JSON"):
        load_generation_config(folder)


def test_rows_of_a_matrix_are_read_from_their_range():
    values, seen = np.arange(40.0, dtype=np.float32).reshape(20, 2), []
    whole = Tensor("m", values.shape, values.dtype, lambda index: seen.append(index) or values[index], "")
    rows = np.array([1, 4, 9, 11, 12, 19])
    part = rows_of(whole, rows).read((slice(2, 5), slice(1, 2)))
    np.testing.assert_array_equal(part, values[[9, 11, 12], 1:])
    assert [values[index].shape for index in seen] == [(4, 1)]


def test_fingerprint_changes_with_weights_and_configuration_only(tmp_path):
    folder, tensors = copy("llama2", tmp_path / "model")
    first = fingerprint(folder)
    assert len(first) == 64
    other, _ = copy("llama2", tmp_path / "other")
    (other / "README.md").write_text("words")
    assert fingerprint(other) == first
    seen = {first}
    for name in ("model.norm.weight", "lm_head.weight"):  # one value anywhere
        tensors[name].flat[-1] += np.float16(1)
        save_file(tensors, folder / "model.safetensors")
        seen.add(fingerprint(folder))
    set_config(folder, rms_norm_eps=1e-6)
    seen.add(fingerprint(folder))
    save_file(heads(32), folder / "heads.safetensors")
    seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_the_fingerprint_of_a_target_changes_with_its_own_weights_and_fields_only(tmp_path):
    folder, tensors = copy("llama2", tmp_path / "model")
    first, whole = target_fingerprint(folder), fingerprint(folder)
    assert known_fingerprint(folder, whole) == whole  # which files of earlier versions have
    assert known_fingerprint(folder, "another") == known_fingerprint(folder, None) == first
    save_file(tensors | heads(32), folder / "model.safetensors")
    block = {"num_heads": 2, "node_set": None}
    set_config(folder, tokenswift=block, _name_or_path="elsewhere", transformers_version="9", eos_token_id=5)
    assert target_fingerprint(folder) == first
    save_file(tensors, folder / "model.safetensors")
    save_file(heads(32), folder / "heads.safetensors")
    assert target_fingerprint(folder) == first
    beside = tmp_path / "heads"
    beside.mkdir()
    (beside / "config.json").write_text(json.dumps({"tokenswift": block | {"base": "../model"}}))
    assert target_fingerprint(beside) == first
    assert fingerprint(folder) != whole
    seen = {first}
    for name in ("model.norm.weight", "lm_head.weight"):
        tensors[name].flat[-1] += np.float16(1)
        save_file(tensors, folder / "model.safetensors")
        seen.add(target_fingerprint(folder))
    set_config(folder, rms_norm_eps=1e-6)
    seen.add(target_fingerprint(folder))
    assert len(seen) == 4


def test_a_fingerprint_reads_headers_of_safetensors_files_alone(tmp_path, monkeypatch):
    folder, _ = copy("llama2", tmp_path / "model")
    data = folder / "orbax" / "d" / "data"
    data.parent.mkdir(parents=True)
    with data.open("wb") as file:  # a length of 80 MB, as other bytes of a data file may read
        file.write((80 << 20).to_bytes(8, "little"))
        file.truncate(80 << 20)
    seen = []
    kind = SimpleNamespace(update=lambda part: seen.append(len(part)), hexdigest=lambda: "")
    monkeypatch.setattr(fingerprints, "hashlib", SimpleNamespace(sha256=lambda: kind))
    fingerprint(folder)
    assert max(seen) < 1 << 20
    assert sum(seen) < 65 << 20


def test_fingerprint_covers_the_base(tmp_path):
    base, tensors = copy("qwen2", tmp_path / "base")
    folder = tmp_path / "heads"
    folder.mkdir()
    (folder / "config.json").write_text('{"tokenswift": {"num_heads": 2, "base": "../base"}}')
    first = fingerprint(folder)
    tensors["model.norm.weight"][0] += np.float16(1)
    save_file(tensors, base / "model.safetensors")
    assert fingerprint(folder) != first
