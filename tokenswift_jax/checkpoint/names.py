"""The only table between HF's tensor names and this package's parameter paths."""

from __future__ import annotations

import re
from typing import Any

# A parameter's place in `nnx.to_flat_state`: strings and integers, ("layers", 0, "mlp", "up_proj", "kernel").
ParameterPath = tuple[Any, ...]

# HF name -> parameter path; {} is the index of a layer or a draft head. HF stores a `kernel` transposed ([out, in]
# there, [in, out] here) and everything else in the same order.
_TABLE = {
    "model.embed_tokens.weight": "embed_tokens",
    "model.layers.{}.input_layernorm.weight": "layers.{}.input_layernorm.scale",
    "model.layers.{}.self_attn.q_proj.weight": "layers.{}.self_attn.q_proj.kernel",
    "model.layers.{}.self_attn.q_proj.bias": "layers.{}.self_attn.q_proj.bias",
    "model.layers.{}.self_attn.k_proj.weight": "layers.{}.self_attn.k_proj.kernel",
    "model.layers.{}.self_attn.k_proj.bias": "layers.{}.self_attn.k_proj.bias",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.self_attn.v_proj.kernel",
    "model.layers.{}.self_attn.v_proj.bias": "layers.{}.self_attn.v_proj.bias",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.self_attn.o_proj.kernel",
    "model.layers.{}.self_attn.o_proj.bias": "layers.{}.self_attn.o_proj.bias",
    "model.layers.{}.self_attn.q_norm.weight": "layers.{}.self_attn.q_norm.scale",
    "model.layers.{}.self_attn.k_norm.weight": "layers.{}.self_attn.k_norm.scale",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.post_attention_layernorm.scale",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.mlp.gate_proj.kernel",
    "model.layers.{}.mlp.gate_proj.bias": "layers.{}.mlp.gate_proj.bias",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.mlp.up_proj.kernel",
    "model.layers.{}.mlp.up_proj.bias": "layers.{}.mlp.up_proj.bias",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.mlp.down_proj.kernel",
    "model.layers.{}.mlp.down_proj.bias": "layers.{}.mlp.down_proj.bias",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "lm_head.kernel",
    "medusa_layers.{}.input_layernorm.weight": "draft_heads.heads.{}.input_layernorm.scale",
    "medusa_layers.{}.linear.weight": "draft_heads.heads.{}.linear.kernel",
    "medusa_layers.{}.linear.bias": "draft_heads.heads.{}.linear.bias",
    "medusa_layers.{}.token_layernorm.weight": "draft_heads.heads.{}.token_layernorm.scale",
    "medusa_layers.{}.gate_proj.weight": "draft_heads.heads.{}.gate_proj.kernel",
    "medusa_layers.{}.up_proj.weight": "draft_heads.heads.{}.up_proj.kernel",
    "medusa_layers.{}.down_proj.weight": "draft_heads.heads.{}.down_proj.kernel",
    "medusa_layers.{}.post_layernorm.weight": "draft_heads.heads.{}.post_layernorm.scale",
}
_BACK = {path: name for name, path in _TABLE.items()}
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_HARMLESS = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.attn\.(masked_)?bias$")

HEAD_PREFIX = "medusa_layers."
COPIES = ("draft_lm_head",)  # parameters that repeat others, which no checkpoint contains


def hf_name(path: ParameterPath) -> str:
    """The tensor name in a safetensors file for a parameter path."""
    template = _BACK[".".join("{}" if isinstance(part, int) else part for part in path)]
    return template.format(*(part for part in path if isinstance(part, int)))


def parameter_path(name: str) -> ParameterPath | None:
    """The parameter path for a (canonical) tensor name; None for a name that no decoder has."""
    template = _TABLE.get(_INDEX.sub("{}", name))
    if template is None:
        return None
    indices = iter(_INDEX.findall(name))
    return tuple(int(next(indices)) if part == "{}" else part for part in template.split("."))


def canonical(name: str) -> str:
    """A stored name in this table's spelling, without the `model.` of the reference program's draft heads."""
    return name.removeprefix("model.") if name.startswith("model." + HEAD_PREFIX) else name


def is_transposed(path: ParameterPath) -> bool:
    """Whether the file stores this parameter as [out, in] while the module stores [in, out]."""
    return path[-1] == "kernel"


def is_harmless(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints contain and that positions alone determine."""
    return _HARMLESS.search(name) is not None
