"""The tensors of a GGUF file under HF's names, with the rows of Llama's queries and keys in HF's order."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tokenswift_jax.checkpoint.gguf.blocks import read_tensor
from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.tensors import Index, Tensor

_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_NO_WEIGHT = "rope_freqs.weight"  # part of the configuration


def hf_name(name: str) -> str:
    """HF's name of a tensor; the GGUF name itself for a tensor that no decoder here has."""
    if found := _LAYER_NAME.fullmatch(name):
        layer, part, kind = found.groups()
        return f"model.layers.{layer}.{_LAYER[part]}.{kind}" if part in _LAYER else name
    part, _, kind = name.rpartition(".")
    return f"{_MODEL[part]}.{kind}" if part in _MODEL else name


def hf_tensors(container: Container, architecture: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by HF's name, read on demand.

    Raises:
      UserError: as `read_tensor`.
    """
    tensors = {}
    for name in container.tensors:
        if name == _NO_WEIGHT:
            continue
        tensor = read_tensor(container, name)
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
            tensor = _halves_apart(tensor, heads)
        tensors[hf_name(name)] = Tensor(hf_name(name), tensor.shape, tensor.dtype, tensor.read, tensor.origin)
    return tensors


def _halves_apart(tensor: Tensor, heads: int) -> Tensor:
    """The rows of each head with the halves of its rotated pairs apart, as HF rotates them.

    llama.cpp's RoPE for Llama rotates neighbouring rows, so its converter stores row i of the first half of a head and
    row i of the second half side by side.
    """
    rows = tensor.shape[0]
    if rows % (2 * heads):
        return tensor  # the comparison with the configuration reports the shape
    order = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def read(index: Index) -> np.ndarray:
        columns = tensor.read((slice(None), *index[1:]))
        return columns[order][index[0]]

    return Tensor(tensor.name, tensor.shape, tensor.dtype, read, tensor.origin)
