"""The small GGUF files whose logits tests/make_gguf_fixtures.py stores."""

import numpy as np
from gguf_files import K_QUANTS, random_model

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_QUANTS]
# Mistral's models are Llama files; transformers reads no head_dim from Qwen3's and takes 128.
MODELS = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "rope_theta": 1e6},
    "tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", "head_dim": 128, "rope_theta": 1e6},
}
CASES = [
    *((name, kind) for name in MODELS for kind in ("F32", "Q4_1")),
    *(("llama", k) for k in KINDS[1:] if k != "Q4_1"),
]


def case_of(name):
    """The configuration and tensors of a small model, and the token ids to compute its logits of."""
    config, tensors = random_model(**MODELS[name])
    return config, tensors, np.random.default_rng(3).integers(0, config["vocab_size"], 60).tolist()
