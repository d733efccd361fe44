"""The decoder and its draft heads once more, in NumPy float64 with plain loops: what the tests compare with.

Written from the formulas, independently of the package: rotation as multiplication of complex numbers, attention head
by head and row by row, the RoPE types from their papers' own quantities (wavelengths, dimensions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, float] | None) -> tuple[list[float], float]:
    """Radians a position of each pair of dimensions, and the factor of cos and sin."""
    result, factor = [], 1.0
    for pair in range(head_dim // 2):
        plain = 1.0 / theta ** (2 * pair / head_dim)
        if scaling is None:
            result.append(plain)
        elif scaling["kind"] == "linear":
            result.append(plain / scaling["factor"])
        elif scaling["kind"] == "llama3":
            turns = scaling["original"] * plain / (2 * math.pi)
            if turns < scaling["low"]:
                result.append(plain / scaling["factor"])
            elif turns > scaling["high"]:
                result.append(plain)
            else:
                share = (turns - scaling["low"]) / (scaling["high"] - scaling["low"])
                result.append((1 - share) * plain / scaling["factor"] + share * plain)
        else:
            bounds = [
                head_dim * math.log(scaling["original"] / (2 * math.pi * turns)) / (2 * math.log(theta))
                for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1))
            ]
            if scaling.get("truncate", True):
                bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
            low, high = max(bounds[0], 0), min(bounds[1], head_dim - 1)
            interpolated = min(max((pair - low) / (high - low), 0.0), 1.0)
            result.append(interpolated * plain / scaling["factor"] + (1 - interpolated) * plain)
            factor = scaling.get("attention_factor", 0.1 * math.log(scaling["factor"]) + 1)
    return result, factor


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis."""
    return x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + eps) * gain


def rotate(x: np.ndarray, angles: np.ndarray, factor: float) -> np.ndarray:
    """Turns [tokens, head_dim] by [tokens, head_dim / 2] radians: dimension i is real, i + head_dim / 2 imaginary."""
    half = x.shape[-1] // 2
    turned = (x[:, :half] + 1j * x[:, half:]) * factor * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int | None) -> np.ndarray:
    """One head, [tokens, head_dim] each: softmax attention of every row to itself and the rows before it."""
    mixed = np.zeros_like(queries)
    for row in range(len(queries)):
        first = 0 if window is None else max(0, row + 1 - window)
        scores = keys[first : row + 1] @ queries[row] / math.sqrt(queries.shape[-1])
        weights = np.exp(scores - scores.max())
        mixed[row] = weights @ values[first : row + 1] / weights.sum()
    return mixed


def linear(weights: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """x W^T + b with HF's layout."""
    return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)


def hidden_states(
    weights: Mapping[str, np.ndarray],
    ids: np.ndarray,
    positions: np.ndarray,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
    theta: float,
    scaling: Mapping[str, float] | None,
    windows: tuple[int | None, ...],
    inverse_frequencies: np.ndarray | None = None,
) -> np.ndarray:
    """The last layer's output [tokens, hidden_size] before the final norm."""
    x = weights["model.embed_tokens.weight"][ids]
    for layer, window in enumerate(windows):
        name = f"model.layers.{layer}."
        normed = rms_norm(x, weights[name + "input_layernorm.weight"], eps)
        attention = name + "self_attn."
        queries = np.split(linear(weights, attention + "q_proj", normed), heads, axis=-1)
        keys = np.split(linear(weights, attention + "k_proj", normed), kv_heads, axis=-1)
        values = np.split(linear(weights, attention + "v_proj", normed), kv_heads, axis=-1)
        if attention + "q_norm.weight" in weights:
            queries = [rms_norm(q, weights[attention + "q_norm.weight"], eps) for q in queries]
            keys = [rms_norm(k, weights[attention + "k_norm.weight"], eps) for k in keys]
        turns, factor = frequencies(queries[0].shape[-1], theta, scaling)
        angles = positions[:, None] * np.array(turns if inverse_frequencies is None else inverse_frequencies)
        keys = [rotate(k, angles, factor) for k in keys]
        mixed = [
            attend(rotate(q, angles, factor), keys[head * kv_heads // heads], values[head * kv_heads // heads], window)
            for head, q in enumerate(queries)
        ]
        x = x + linear(weights, attention + "o_proj", np.concatenate(mixed, axis=-1))
        normed = rms_norm(x, weights[name + "post_attention_layernorm.weight"], eps)
        gate = linear(weights, name + "mlp.gate_proj", normed)
        x = x + linear(
            weights, name + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(weights, name + "mlp.up_proj", normed)
        )
    return x


def logits(weights: Mapping[str, np.ndarray], hidden: np.ndarray, eps: float) -> np.ndarray:
    """[tokens, vocab] from the last layer's output."""
    table = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return rms_norm(hidden, weights["model.norm.weight"], eps) @ table.T


def draft_logits(weights: Mapping[str, np.ndarray], hidden: np.ndarray, eps: float, count: int) -> np.ndarray:
    """[tokens, heads, vocab]: h_i = h_{i-1} + W_i norm_i(h_{i-1}), logits_i = lm_head(norm'_i(h_i))."""
    table = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    outputs = []
    for head in range(count):
        name = f"medusa_layers.{head}."
        hidden = hidden + linear(
            weights, name + "linear", rms_norm(hidden, weights[name + "input_layernorm.weight"], eps)
        )
        outputs.append(rms_norm(hidden, weights[name + "post_layernorm.weight"], eps) @ table.T)
    return np.stack(outputs, axis=1)


def medusa_draft_logits(weights: Mapping[str, np.ndarray], hidden: np.ndarray, eps: float, count: int) -> np.ndarray:
    """[tokens, heads, vocab]: logits_i = lm_head(x + silu(W_i x + b_i)), x = norm(hidden)."""
    table = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    x = rms_norm(hidden, weights["model.norm.weight"], eps)
    gates = [linear(weights, f"medusa_layers.{head}.linear", x) for head in range(count)]
    return np.stack([(x + gate / (1 + np.exp(-gate))) @ table.T for gate in gates], axis=1)


def sequential_draft_logits(
    weights: Mapping[str, np.ndarray], hidden: np.ndarray, ids: np.ndarray, eps: float, count: int
) -> np.ndarray:
    """[tokens, heads, vocab], NaN where a head would see a token past the text's end.

    h_i[t] = h_{i-1}[t] + down(silu(gate z) * up z), z = [norm_i(h_{i-1}[t]); norm^e_i(E[ids[t + 1 + i]])].
    """
    vocabulary = weights["model.embed_tokens.weight"]
    table = weights.get("lm_head.weight", vocabulary)
    result = np.full((len(ids), count, len(vocabulary)), np.nan)
    for row, state in enumerate(hidden):
        for head in range(min(count, len(ids) - 1 - row)):
            name = f"medusa_layers.{head}."
            token = vocabulary[ids[row + 1 + head]]
            z = np.concatenate(
                [
                    rms_norm(state, weights[name + "input_layernorm.weight"], eps),
                    rms_norm(token, weights[name + "token_layernorm.weight"], eps),
                ]
            )
            gate = linear(weights, name + "gate_proj", z)
            state = state + linear(
                weights, name + "down_proj", gate / (1 + np.exp(-gate)) * linear(weights, name + "up_proj", z)
            )
            result[row, head] = table @ rms_norm(state, weights[name + "post_layernorm.weight"], eps)
    return result
