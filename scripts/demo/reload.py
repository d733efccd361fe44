"""Reads a demo checkpoint directory back into a decoder, independent of the package's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.flax import load_file

from demo.checkpoint import hf_name
from demo.learner import split_decoder
from demo.recipe import llama_config
from tokenswift_jax.models.decoder import Decoder


def load_parameters(folder: Path) -> tuple[Any, Any, Any]:
    """Graph definition, head and backbone parameters; the bfloat16 tensors widened to float32."""
    fields = json.loads((folder / "config.json").read_text())
    config = llama_config(fields | {"num_draft_heads": fields["tokenswift"]["num_heads"]})
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "heads.safetensors")
    graph, heads, backbone = split_decoder(config, seed=0)

    def stored(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        tensor = tensors.pop(hf_name(path)).astype(jnp.float32)
        tensor = tensor.T if "kernel" in jax.tree_util.keystr(path) else tensor
        assert tensor.shape == leaf.shape, (hf_name(path), tensor.shape, leaf.shape)
        return tensor

    heads, backbone = (jax.tree_util.tree_map_with_path(stored, part) for part in (heads, backbone))
    assert not tensors, f"unknown tensors: {sorted(tensors)}"
    return graph, heads, backbone


def load_decoder(folder: Path) -> Decoder:
    """The decoder with its heads, float32."""
    return nnx.merge(*load_parameters(folder))
