"""Tiny seeded checkpoints of every model family with the logits that transformers computes from them in float32.

Run with torch installed: `python tests/make_family_fixtures.py [OUT]` (default tests/data/families). Weights are
drawn in float32 and stored in float16, so both sides start from the same numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoConfig, AutoModelForCausalLM

SEED = 20_250_602
TOKENS = 300
ROWS = 24  # positions whose logits are kept, evenly spread, both ends included

_SHARED: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
# The spelling is deliberate: rope_theta and rope_scaling as transformers 4 writes them, rope_parameters as 5 does;
# original lengths and windows are far below the 300 positions computed, so that they matter.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4, "rope_scaling": None},
    "llama3_1": {
        "model_type": "llama",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
    },
    "llama_linear": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "yarn_llama2": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "head_dim": 16,
        "rope_theta": 10000.0,
        "rope_scaling": {"factor": 8.0, "finetuned": True, "original_max_position_embeddings": 64, "type": "yarn"},
    },
    "mistral": {
        "model_type": "mistral",
        "head_dim": 16,
        "sliding_window": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 8},
    "qwen2_window": {
        "model_type": "qwen2",
        "head_dim": 16,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
    },
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}


def draw_weights(model: torch.nn.Module) -> None:
    """Seeded weights large enough that every part of the network shows in the logits."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                values = 0.6 + 0.8 * torch.rand(weight.shape, generator=generator)
            else:
                values = (0.5 if "embed" in name else 0.25) * torch.randn(weight.shape, generator=generator)
            weight.copy_(values.half().float())


def make(name: str, folder: Path) -> None:
    """Writes config.json, model.safetensors and expected.npz of one family."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_SHARED | FAMILIES[name], indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    draw_weights(model)
    ids = torch.randint(config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
    positions = np.unique(np.linspace(0, TOKENS - 1, ROWS).round().astype(np.int64))
    np.savez_compressed(
        folder / "expected.npz", input_ids=ids[0].numpy(), positions=positions, logits=logits[positions]
    )
    spelled = (folder / "config.json").read_text()
    model.half().save_pretrained(folder)
    (folder / "config.json").write_text(spelled)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Makes every family below the folder given on the command line."""
    default = Path(__file__).resolve().parent.parent / "tests" / "data" / "families"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    for name in FAMILIES:
        make(name, out / name)
        print(out / name)


if __name__ == "__main__":
    main()
