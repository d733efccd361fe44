"""The models that long text is written with: their configurations without their weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.hf_config import model_config

_QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 131072,  # stretched as their cards say, or as the -1M models have it
}
# Fields of the published config.json files.
_MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-1.5B": _QWEN
    | {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": _QWEN
    | {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-14B": _QWEN
    | {
        "vocab_size": 152064,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "Yarn-Llama-2-7B": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    # For machines without an accelerator: every step of the scripts runs, nothing is measured by it.
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
}
NAMES = tuple(_MODELS)
# Models that need several devices at most lengths.
_LARGE: dict[str, dict[str, Any]] = {
    "Qwen2.5-32B": _MODELS["Qwen2.5-14B"] | {"intermediate_size": 27648, "num_hidden_layers": 64},
    "Llama-3.1-70B": _MODELS["Llama-3.1-8B"]
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
LARGE = tuple(_LARGE)
DRAFT_HEADS = 3


def fields_of(name: str) -> dict[str, Any]:
    """The fields of a model's config.json."""
    return dict((_MODELS | _LARGE)[name])


def config_of(name: str, layers: int | None = None) -> ModelConfig:
    """The configuration of a model with three of the paper's draft heads; `layers` of it, None for all."""
    fields = fields_of(name)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    return dataclasses.replace(model_config(fields), num_draft_heads=DRAFT_HEADS, draft_head_type="chained")
