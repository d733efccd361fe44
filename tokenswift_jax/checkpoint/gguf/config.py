"""config.json and generation_config.json from a GGUF file's metadata."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.checkpoint.gguf.blocks import read_tensor
from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.rope import rope_scaling
from tokenswift_jax.checkpoint.save import ARCHITECTURES
from tokenswift_jax.errors import UserError

# llama.cpp's name of an architecture -> HF's model_type. It converts Mistral's models as Llama ones.
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_THETA = 10_000.0  # llama.cpp's, where the file states none
_NOT_MODELS = {
    "adapter": "a LoRA adapter",
    "mmproj": "a multimodal projector",
    "imatrix": "an importance matrix",
    "vocab": "a vocabulary alone",
}


def architecture(container: Container) -> str:
    """The architecture, checked.

    Raises:
      UserError: the file is part of a model, no model, of another architecture, or a mixture of experts; a value that
        says so has another type.
    """
    path = container.path
    general = Fields(path, container.metadata, "general.")
    kind = general.text("type") or "model"
    if kind != "model":
        raise UserError(f"{path} is {_NOT_MODELS.get(kind, f'of the type {kind!r}')}, not a model")
    parts = Fields(path, container.metadata, "split.").index("count") or 1
    if parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; join them first, with llama.cpp's llama-gguf-split"
        )
    name = general.text("architecture")
    if name is None or name not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{path} has the architecture {name!r}; known: {known} (Mistral's models are llama here)")
    experts = Fields(path, container.metadata, f"{name}.").index("expert_count")
    if experts:
        raise UserError(f"{path} is a mixture of {experts} experts; only dense models are known")
    return name


def hf_config(container: Container) -> dict[str, Any]:
    """The config.json of the model.

    Raises:
      UserError: as `architecture`; a value is missing, impossible, or of a kind that no decoder here has.
    """
    name = architecture(container)
    fields, tensors = Fields(container.path, container.metadata, f"{name}."), container.tensors
    size, heads = fields.required("embedding_length"), fields.required("attention.head_count")
    positions, theta = fields.required("context_length"), fields.number("rope.freq_base") or _THETA
    rotated = fields.whole("rope.dimension_count")
    head_dim = fields.whole("attention.key_length") or rotated or size // heads
    if rotated not in (None, head_dim):
        raise fields.error(f"rotates {rotated} of {head_dim} values a head; only whole heads are known")
    if fields.whole("attention.value_length") not in (None, head_dim):
        raise fields.error("has values of another length than keys; only equal ones are known")
    epsilon = fields.number("attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise fields.error(f"lacks {name}.attention.layer_norm_rms_epsilon")
    divisors = read_tensor(container, "rope_freqs.weight").values() if "rope_freqs.weight" in tensors else None
    if divisors is not None and divisors.shape != (head_dim // 2,):
        raise fields.error(f"has a rope_freqs.weight of shape {list(divisors.shape)} instead of {[head_dim // 2]}")
    config = {
        "model_type": MODEL_TYPES[name],
        "hidden_size": size,
        "intermediate_size": fields.required("feed_forward_length"),
        "num_hidden_layers": fields.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "vocab_size": _vocabulary(container),
        "max_position_embeddings": positions,
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(fields, theta, positions, divisors),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    window = fields.whole("attention.sliding_window")
    if name == "llama" and window is not None:
        config |= {"model_type": "mistral", "sliding_window": window}
    elif window is not None and window < positions:
        raise fields.error(f"states {name}.attention.sliding_window {window}; only llama files may have one")
    if config["model_type"] in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if config["model_type"] == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    fields.ignore("vocab_size", "tensor_data_layout")
    fields.neutral("expert_count", 0)
    fields.neutral("expert_used_count", 0)
    fields.neutral("attention.causal", 1)
    fields.neutral("attention.clamp_kqv", 0)
    fields.neutral("attention.max_alibi_bias", 0)
    fields.neutral("use_parallel_residual", 0)
    fields.finish()
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    return config


def _vocabulary(container: Container) -> int:
    if "token_embd.weight" not in container.tensors:
        raise UserError(f"{container.path} lacks the tensor token_embd.weight; a model's file has it")
    return container.tensors["token_embd.weight"].shape[0]
