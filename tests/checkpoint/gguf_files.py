"""GGUF files as llama.cpp's converter makes them from checkpoints of transformers, written by the gguf package.

The names come from the gguf package's own table, the order of rows and the divisors of frequencies from llama.cpp's
convert_hf_to_gguf.py; nothing here uses the code under test.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
K_QUANTS = {
    # bytes of a block, the places of the float16 scales in it, and scales that make weights of about 0.05
    "Q2_K": (84, (80, 82), 4e-3),
    "Q3_K": (110, (108,), 1.5e-3),
    "Q4_K": (144, (0, 2), 2e-4),
    "Q5_K": (176, (0, 2), 1e-4),
    "Q6_K": (210, (208,), 4e-5),
    "IQ4_NL": (18, (0,), 7e-4),
    "IQ4_XS": (136, (0,), 4.5e-5),
}


def permuted(weights, heads):
    """LlamaModel.permute of convert_hf_to_gguf.py."""
    parts = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return parts.swapaxes(1, 2).reshape(weights.shape)


def divisors(head_dim, theta, scaling):
    """rope_freqs.weight as LlamaModel.generate_extra_tensors writes it."""
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    found = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < length / high:
            found.append(1)
        elif wavelength > length / low:
            found.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def random_blocks(kind, shape, seed):
    """Blocks that no person quantised: random bits with small scales, one row of the file a row."""
    size, places, scale = K_QUANTS[kind]
    width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // width, size), dtype=np.uint8)
    for place in places:
        drawn = rng.uniform(0.5 * scale, 1.5 * scale, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = drawn[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def stored(values, kind, seed=0):
    """A matrix in a storage type, as (what the writer takes, the values that it stands for)."""
    type_ = gguf.GGMLQuantizationType[kind]
    if kind in K_QUANTS:
        blocks = random_blocks(kind, values.shape, seed)
        return blocks, gguf.quants.dequantize(blocks, type_)
    if kind == "F16":
        return values.astype(np.float16), values.astype(np.float16).astype(np.float32)
    blocks = gguf.quants.quantize(values.astype(np.float32), type_)
    return blocks, gguf.quants.dequantize(blocks, type_)


def write_metadata(writer, config):
    """The fields that convert_hf_to_gguf.py writes of a config.json."""
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if config["model_type"] in ("llama", "mistral"):
        writer.add_rope_dimension_count(head_dim)
    if head_dim * heads != config["hidden_size"]:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    scaling = config.get("rope_scaling") or {"type": rope.get("rope_type", "default"), **rope}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if config["model_type"] == "mistral" and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    return head_dim, scaling if kind == "llama3" else None


def write_gguf(file, config, tensors, kind="F16", more=lambda writer: None, kinds=None):
    """Writes a model and returns the values, in float32, that its tensors have under transformers' names.

    `kind` is the storage type of the matrices, `kinds` that of single tensors by HF name; vectors are float32.
    `more` adds metadata to the writer.
    """
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, architecture)
    head_dim, llama3 = write_metadata(writer, config)
    more(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    values = {}
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        heads = None
        if architecture == "llama" and ".q_proj." in name:
            heads = config["num_attention_heads"]
        if architecture == "llama" and ".k_proj." in name:
            heads = config["num_key_value_heads"]
        placed = tensor if heads is None else permuted(tensor, heads)
        if placed.ndim == 1:
            data, meant, type_ = placed.astype(np.float32), placed.astype(np.float32), "F32"
        else:
            type_ = (kinds or {}).get(name, kind)
            data, meant = stored(placed, type_, seed)
        values[name] = meant if heads is None else unpermuted(meant, heads)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")),
            data,
            raw_dtype=None if type_ in ("F32", "F16") else gguf.GGMLQuantizationType[type_],
        )
    if llama3 is not None:
        writer.add_tensor("rope_freqs.weight", divisors(head_dim, config["rope_theta"], llama3))
    close(writer)
    return values


def unpermuted(weights, heads):
    """The inverse of `permuted`, found by permuting row numbers."""
    order = permuted(np.arange(weights.shape[0]), heads)
    back = np.empty_like(weights)
    back[order] = weights
    return back


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def family(folder):
    """(config, tensors) of a checkpoint of transformers."""
    folder = Path(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def random_model(model_type, seed=0, **fields):
    """(config, tensors) of a small model, wide enough for rows of K quants."""
    config = {
        "model_type": model_type,
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    } | fields
    rng = np.random.default_rng(seed)
    wide, hidden = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], wide), "model.norm.weight": (wide,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], wide)
    for layer in range(config["num_hidden_layers"]):
        sizes = {
            "self_attn.q_proj.weight": (queries, wide),
            "self_attn.k_proj.weight": (keys, wide),
            "self_attn.v_proj.weight": (keys, wide),
            "self_attn.o_proj.weight": (wide, queries),
            "mlp.gate_proj.weight": (hidden, wide),
            "mlp.up_proj.weight": (hidden, wide),
            "mlp.down_proj.weight": (wide, hidden),
            "input_layernorm.weight": (wide,),
            "post_attention_layernorm.weight": (wide,),
        }
        if model_type == "qwen2":
            sizes |= {
                f"self_attn.{part}_proj.bias": (size,) for part, size in zip("qkv", (queries, keys, keys), strict=True)
            }
        if model_type == "qwen3":
            sizes |= {f"self_attn.{part}_norm.weight": (config["head_dim"],) for part in "qk"}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in sizes.items()}
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.05 if len(shape) > 1 else 0.2
        tensors[name] = ((len(shape) == 1 and "bias" not in name) + scale * rng.normal(size=shape)).astype(np.float32)
    return config, tensors
