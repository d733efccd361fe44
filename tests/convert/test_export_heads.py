"""convert.export --heads: the reference program's names, Medusa's layout, and refusals of what a layout cannot hold."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import tokenswift_jax as ts
from convert.export import export
from convert.hf import convert
from tests.checkpoint.checkpoints_made_here import copy, heads, set_config
from tokenswift_jax.checkpoint import open_checkpoint
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.attention import causal_attention


def with_heads(folder, head_type="chained", tensors=None, family="llama2"):
    """A tiny model with two draft heads in this project's layout."""
    copy(family, folder)
    save_file(heads(32) if tensors is None else tensors, folder / "heads.safetensors")
    set_config(folder, tokenswift={"num_heads": 2, "head_type": head_type})
    return folder


def sequential_heads(size, count=2):
    shapes = {"input_layernorm": (size,), "token_layernorm": (size,), "post_layernorm": (size,)}
    shapes |= {"gate_proj": (size, 2 * size), "up_proj": (size, 2 * size), "down_proj": (size, size)}
    return {
        f"medusa_layers.{head}.{part}.weight": np.full(shape, head, np.float16)
        for head in range(count)
        for part, shape in shapes.items()
    }


def test_the_references_names_load_again_bit_identically(tmp_path):
    source = with_heads(tmp_path / "source")
    export([str(source), str(tmp_path / "out"), "--heads", "tokenswift"])
    stored = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(source / "model.safetensors") | heads(32, prefix="model.medusa_layers.")
    assert {name: values.tobytes() for name, values in stored.items()} == {
        name: values.tobytes() for name, values in expected.items()
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["medusa_heads"] == 2
    assert "tokenswift" not in config
    assert not (tmp_path / "out" / "heads.safetensors").exists()

    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(source).config
    convert([str(tmp_path / "out"), str(tmp_path / "again")])
    for file in ("heads.safetensors", "model.safetensors"):
        again, before = (load_file(folder / file) for folder in (tmp_path / "again", source))
        assert {name: values.tobytes() for name, values in again.items()} == {
            name: values.tobytes() for name, values in before.items()
        }


def medusa_heads(size, count=2):
    rng = np.random.default_rng(5)
    shapes = {"weight": (size, size), "bias": (size,)}
    return {
        f"medusa_layers.{head}.linear.{part}": rng.normal(0, 0.2, shape).astype(np.float16)
        for head in range(count)
        for part, shape in shapes.items()
    }


@pytest.mark.parametrize("family", ["llama2", "llama3_1"])  # the second ties its embeddings
def test_medusa_layout_means_the_same_logits(tmp_path, family):
    source = with_heads(tmp_path / "source", "medusa", medusa_heads(32), family)
    assert "2 heads" in export([str(source), str(tmp_path / "out"), "--heads", "medusa"])
    files = ["config.json", "medusa_lm_head.safetensors", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (2, 1)
    assert (config["num_heads"], config["num_hidden_layers"], config["model_type"]) == (2, 1, "medusa")
    assert (config["hidden_size"], config["base_model_name_or_path"]) == (32, str(source))

    model = ts.load(source)
    ids = [5, 17, 3, 99, 41, 8]
    graph, state = model.graphdef, model.params
    decoder = nnx.merge(graph, state)
    tokens, positions = jnp.asarray([ids], jnp.int32), jnp.arange(len(ids), dtype=jnp.int32)[None]
    hidden, _, _ = decoder.hidden(tokens, positions, causal_attention(model.config), None)
    x = np.asarray(decoder.norm(hidden), np.float64)[0]
    expected = np.asarray(ts.draft_logits(model, [ids]))[0, :, 1:]

    def formula(weight, bias, lm_head):
        gate = x @ weight.T.astype(np.float64) + bias
        return (x + gate / (1 + np.exp(-gate))) @ lm_head.T.astype(np.float64)

    medusa = load_file(tmp_path / "out" / "medusa_lm_head.safetensors")
    assert len(medusa) == 6
    vllm = load_file(tmp_path / "out" / "model.safetensors")
    assert len(vllm) == 5
    for head in range(2):
        own = formula(medusa[f"{head}.0.linear.weight"], medusa[f"{head}.0.linear.bias"], medusa[f"{head}.1.weight"])
        np.testing.assert_allclose(expected[:, head], own, atol=1e-5)  # float32 against float64
        block = f"blocks.{head}.layers.0."
        shared = formula(vllm[block + "weight"], vllm[block + "bias"], vllm["lm_head.weight"])
        np.testing.assert_allclose(expected[:, head], shared, atol=1e-5)


def no_heads(folder):
    copy("llama2", folder)


def sequential(folder):
    with_heads(folder, "sequential", sequential_heads(32))


REFUSED = {
    "reference: no heads": (no_heads, "tokenswift", "has no draft heads to export"),
    "reference: sequential": (sequential, "tokenswift", "it knows chained ones only"),
    "medusa: no heads": (no_heads, "medusa", "has no draft heads to export"),
    "medusa: chained": (with_heads, "medusa", "each head reads the head before it"),
    "medusa: sequential": (sequential, "medusa", "each head reads the drafted token above its guess"),
    "unknown layout": (with_heads, "eagle", "invalid choice: 'eagle'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layout_cannot_hold_is_refused_in_one_line(tmp_path, name):
    make, layout, part = REFUSED[name]
    make(tmp_path / "source")
    with pytest.raises(UserError) as caught:
        export([str(tmp_path / "source"), str(tmp_path / "out"), "--heads", layout])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
