"""The checkpoint directory of docs: config.json, bfloat16 safetensors with HF's names, generation defaults."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.flax import save_file

from demo.recipe import Recipe
from tokenswift_jax.models.config import ModelConfig


def hf_name(path: tuple[Any, ...]) -> str:
    """HF's tensor name of an NNX parameter path: layers.0.mlp.up_proj.kernel -> model.layers.0.mlp.up_proj.weight."""
    keys = [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
    name = ".".join(key for key in keys if key != "value")
    name = re.sub(r"\.(kernel|scale)$", ".weight", name)
    if name == "embed_tokens":
        name += ".weight"
    head = re.match(r"draft_heads\.heads\.(.*)", name)
    return f"medusa_layers.{head[1]}" if head else f"model.{name}"


def hf_tensors(params: Any) -> dict[str, jax.Array]:
    """bfloat16 tensors by HF name, linear maps as [out, in]."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        is_linear = "kernel" in jax.tree_util.keystr(path)
        tensors[hf_name(path)] = (leaf.T if is_linear else leaf).astype(jnp.bfloat16)
    return tensors


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """LlamaConfig's fields, and the draft heads' under "tokenswift"."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "initializer_range": config.hidden_size**-0.5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "tokenswift": {"num_heads": config.num_draft_heads, "head_type": "chained", "node_set": None, "base": None},
    }


def _place_json(folder: Path, name: str, content: Any) -> None:
    draft = folder / f"{name}.part"
    draft.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(draft, folder / name)


def _place_tensors(folder: Path, name: str, tensors: dict[str, jax.Array]) -> None:
    draft = folder / f"{name}.part"
    save_file(tensors, draft, metadata={"format": "pt"})  # what transformers writes
    draft.chmod(0o644)  # safetensors leaves 0600, which an installed package's other users could not read
    os.replace(draft, folder / name)


def write_checkpoint(folder: Path, recipe: Recipe, backbone: Any, heads: Any, facts: dict[str, Any]) -> None:
    """Writes the model's files, each in one move; `facts` of the training go to training.json."""
    _place_json(folder, "config.json", hf_config(recipe.model))
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    _place_json(folder, "generation_config.json", recipe.generation | ends)
    _place_json(folder, "training.json", facts)
    _place_tensors(folder, "heads.safetensors", hf_tensors(heads))
    _place_tensors(folder, "model.safetensors", hf_tensors(backbone))
