"""convert.export --heads: the reference program's names, and refusals of what a layout cannot hold."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.export import export
from convert.hf import convert
from tests.checkpoint.checkpoints_made_here import copy, heads, set_config
from tokenswift_jax.checkpoint import open_checkpoint
from tokenswift_jax.errors import UserError


def with_heads(folder, head_type="chained", tensors=None):
    """A tiny llama2 with two draft heads in this project's layout."""
    copy("llama2", folder)
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


def no_heads(folder):
    copy("llama2", folder)


def sequential(folder):
    with_heads(folder, "sequential", sequential_heads(32))


REFUSED = {
    "reference: no heads": (no_heads, "tokenswift", "has no draft heads to export"),
    "reference: sequential": (sequential, "tokenswift", "it knows chained ones only"),
    "medusa: no heads": (no_heads, "medusa", "has no draft heads to export"),
    "medusa: chained": (with_heads, "medusa", "each head goes on from the one before it"),
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
