"""Linear maps that read the same rows as one map: fewer and larger matmuls, for GPUs.

One row's product with a small matrix cannot occupy a GPU: Llama-3.1-8B's keys and values alone are 8 MB each, which an
H200 reads in 2 us and multiplies in 4.4 us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.decoder_layer import MLP, SelfAttention
from tokenswift_jax.models.layers import Linear


def joined(decoder: Decoder) -> Decoder:
    """Joins q|k|v and gate|up of every layer; modifies the given module and returns it.

    The joined kernels are [hidden, kv_heads, group + 2, head_dim] (a KV head's queries, its key, its value) and
    [hidden, 2, inner], so that a mesh splits them by KV head and by inner column as it does the parts. Outputs are the
    same sums over the same inputs. Unless the caller keeps them, parts are freed layer by layer.
    """
    for layer in decoder.layers:
        _join_attention(layer.self_attn)
        _join_mlp(layer.mlp)
    return decoder


def _join_attention(part: SelfAttention) -> None:
    dim = part.head_dim

    def columns(arrays: Sequence[jax.Array]) -> jax.Array:
        first, heads = arrays[0].shape[:-1], arrays[1].shape[-1] // dim
        return jnp.concatenate([a.reshape(*first, heads, -1, dim) for a in arrays], axis=-2)

    part.qkv_proj = _one([part.q_proj, part.k_proj, part.v_proj], columns)  # pyright: ignore[reportAttributeAccessIssue]
    part.q_proj = part.k_proj = part.v_proj = None  # pyright: ignore[reportAttributeAccessIssue]


def _join_mlp(part: MLP) -> None:
    def columns(arrays: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack(arrays, axis=-2)

    part.gate_up_proj = _one([part.gate_proj, part.up_proj], columns)  # pyright: ignore[reportAttributeAccessIssue]
    part.gate_proj = part.up_proj = None  # pyright: ignore[reportAttributeAccessIssue]


def _one(parts: Sequence[Linear], columns: Callable[[Sequence[jax.Array]], jax.Array]) -> Linear:
    """The first of the maps, with the columns of all."""
    one, biases = parts[0], [part.bias[...] for part in parts if part.bias is not None]
    one.kernel = nnx.Param(columns([part.kernel[...] for part in parts]))
    one.bias = nnx.Param(columns(biases)) if biases else None
    return one
