"""GGUF files of every architecture and storage type become the checkpoint that they were made of."""

import json

import gguf
import numpy as np
import pytest
from checkpoints_made_here import FAMILIES
from gguf_files import K_QUANTS, divisors, family, random_model, write_gguf
from safetensors.numpy import load_file

from convert.hf import convert
from tokenswift_jax.checkpoint import open_checkpoint
from tokenswift_jax.checkpoint.gguf.blocks import read_tensor
from tokenswift_jax.checkpoint.gguf.container import read_container
from tokenswift_jax.models.hf_config import model_config

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_QUANTS]


def converted(file, folder, *words):
    convert([str(file), str(folder), *words])
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["llama2", "llama3_1", "llama_linear", "yarn_llama2", "mistral", "qwen2", "qwen2_window", "qwen3"]
)
def test_a_family_survives_the_way_there_and_back(tmp_path, name):
    config, tensors = family(FAMILIES / name)
    if (
        name == "qwen2_window"
    ):  # GGUF has no place for Qwen's window, nor for this file's spelling of the attention factor
        config |= {"use_sliding_window": False}
        config["rope_parameters"] = {
            key: value for key, value in config["rope_parameters"].items() if not key.startswith(("mscale", "trunc"))
        }
    write_gguf(tmp_path / "model.gguf", config, tensors)
    back, weights = converted(tmp_path / "model.gguf", tmp_path / "model")
    assert model_config(back) == model_config(config)
    assert weights.keys() == tensors.keys()
    for tensor, values in tensors.items():
        expected = values if values.ndim > 1 else values.astype(np.float32)  # llama.cpp stores vectors in float32
        np.testing.assert_array_equal(weights[tensor], expected, strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_storage_type(tmp_path, model_type, kind):
    config, tensors = random_model(model_type)
    values = write_gguf(tmp_path / "model.gguf", config, tensors, kind)
    back, weights = converted(tmp_path / "model.gguf", tmp_path / "model")
    plain = kind in ("F16", "BF16")
    assert back["dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    for name, expected in values.items():
        assert str(weights[name].dtype) == (back["dtype"] if plain and expected.ndim > 1 else "float32")
        np.testing.assert_array_equal(weights[name].astype(np.float32), expected)


def test_files_mix_storage_types(tmp_path):
    config, tensors = random_model("llama", tie_word_embeddings=True)
    kinds = {"model.embed_tokens.weight": "Q6_K", "model.layers.1.mlp.down_proj.weight": "IQ4_NL"}
    values = write_gguf(tmp_path / "model.gguf", config, tensors, "Q4_K", kinds=kinds)
    back, weights = converted(tmp_path / "model.gguf", tmp_path / "model")
    assert back["tie_word_embeddings"]
    assert "lm_head.weight" not in weights
    for name, expected in values.items():
        np.testing.assert_array_equal(weights[name], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast(tmp_path, dtype):
    config, tensors = random_model("qwen3")
    values = write_gguf(tmp_path / "model.gguf", config, tensors, "Q8_0")
    back, weights = converted(tmp_path / "model.gguf", tmp_path / "model", "--dtype", dtype)
    assert back["dtype"] == dtype
    assert open_checkpoint(tmp_path / "model").dtype == np.dtype(weights["model.norm.weight"].dtype)
    for name, expected in values.items():
        np.testing.assert_array_equal(weights[name], expected.astype(weights[name].dtype), strict=True)


@pytest.mark.parametrize("kind", ["F16", "Q5_1", "Q3_K"])
def test_parts_are_read_without_the_rest(tmp_path, kind):
    config, tensors = random_model("llama")
    values = write_gguf(tmp_path / "model.gguf", config, tensors, kind)
    container = read_container(tmp_path / "model.gguf")
    tensor = read_tensor(container, "blk.1.ffn_up.weight")
    expected = values["model.layers.1.mlp.up_proj.weight"]
    index = (slice(3, 77, 5), slice(100, 101))
    np.testing.assert_array_equal(tensor.read(index).astype(np.float32), expected[index])
    queries = read_tensor(container, "blk.0.attn_norm.weight")
    np.testing.assert_array_equal(
        queries.read((slice(9, 4, -1),)), values["model.layers.0.input_layernorm.weight"][9:4:-1]
    )


@pytest.mark.parametrize(
    ("theta", "head_dim", "scaling"),
    [
        (500000.0, 128, (8.0, 1.0, 4.0, 8192)),  # Llama 3.1
        (500000.0, 64, (32.0, 1.0, 4.0, 8192)),  # Llama 3.2 1B
        (500000.0, 128, (16.0, 1.0, 1.5, 4096)),
        (10000.0, 64, (4.0, 1.0, 2.0, 333)),
        (10000.0, 8, (4.0, 1.0, 4.0, 64)),  # one frequency between the cut-offs
        (1e6, 4, (4.0, 1.0, 4.0, 64)),  # none
    ],
)
def test_frequencies_of_llama3_are_found_again(tmp_path, theta, head_dim, scaling):
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    rope = {"rope_type": "llama3", **dict(zip(names, scaling, strict=True))}
    config, tensors = random_model("llama", head_dim=head_dim, rope_theta=theta, rope_scaling=rope)
    write_gguf(tmp_path / "model.gguf", config, tensors)
    back, _ = converted(tmp_path / "model.gguf", tmp_path / "model")
    found = back["rope_scaling"]
    np.testing.assert_allclose(divisors(head_dim, theta, found), divisors(head_dim, theta, rope), rtol=1e-6)
    if scaling[1:] == (1.0, 4.0, 8192):
        assert found == rope


def test_metadata_is_what_the_gguf_package_reads(tmp_path):
    def more(writer):
        writer.add_tokenizer_model("none")
        numbers = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 1 << 31, "int32": -5}
        numbers |= {"uint64": 1 << 63, "int64": -(1 << 62), "float32": 0.5, "float64": 1e-300, "bool": True}
        for kind, value in (numbers | {"string": "é\u2581"}).items():
            getattr(writer, f"add_{kind}")(f"test.{kind}", value)
        for index, values in enumerate([[1.5, 2.5], ["a", "bé"], [3, 4, 5]]):
            writer.add_array(f"test.array.{index}", values)

    config, tensors = random_model("qwen2")
    write_gguf(tmp_path / "model.gguf", config, tensors, "Q4_1", more)
    container, reader = read_container(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert container.metadata.pop("qwen2.attention.layer_norm_rms_epsilon") == 1e-5  # not float32's 9.99999974e-06
    fields.pop("qwen2.attention.layer_norm_rms_epsilon")
    assert container.metadata == fields
    assert {name: (entry.shape, entry.kind, entry.offset) for name, entry in container.tensors.items()} == {
        tensor.name: (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type, tensor.data_offset)
        for tensor in reader.tensors
    }
