"""A decoder's configuration of two layers, each with its own sliding window, for tests of draft caches."""

from tokenswift_jax.models.hf_config import model_config

LAYERS, KV_HEADS, GROUP, HEAD_DIM = 2, 2, 2, 4


def config(windows=(None, None)):
    kind = {None: "full_attention"}
    return model_config(
        {
            "model_type": "qwen3",
            "vocab_size": 8,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": KV_HEADS * GROUP,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "use_sliding_window": True,
            "sliding_window": next((window for window in windows if window), 1),
            "layer_types": [kind.get(window, "sliding_attention") for window in windows],
        }
    )
