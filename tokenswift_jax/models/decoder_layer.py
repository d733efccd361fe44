"""One layer of the decoder: attention and MLP, with their norms, on the residual stream."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.rotate_write import HeadNorms
from tokenswift_jax.models.attention import Attention
from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.models.layers import Linear, RMSNorm, linear_maps
from tokenswift_jax.models.projected import Apart, Projected, Together
from tokenswift_jax.models.rope import Rotation
from tokenswift_jax.parallel.residual import replicate


class SelfAttention(nnx.Module):
    """Projections and optional per-head norms around the caller's attention, which rotates queries and keys."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, dim = config.hidden_size, config.head_dim
        queries, keys = config.num_heads * dim, config.num_kv_heads * dim
        self.q_proj = Linear(size, queries, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(size, keys, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(size, keys, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.qkv_proj = nnx.data(None)  # `models.joined` puts one map in the place of the three
        self.o_proj = Linear(queries, size, bias=config.output_bias, dtype=dtype, rngs=rngs)
        norm = config.qk_norm
        self.q_norm = RMSNorm(dim, eps=config.rms_norm_eps, dtype=dtype) if norm else None
        self.k_norm = RMSNorm(dim, eps=config.rms_norm_eps, dtype=dtype) if norm else None
        self.head_dim = dim

    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        layer: int | jax.Array,
        spec: AttentionSpec,
        attention: Attention,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        mixed, left, carry = attention(layer, self.projected(x), rotation, spec, carry)
        return self.o_proj(mixed.reshape(*x.shape[:2], -1)), left, carry

    def projected(self, x: jax.Array) -> Projected:
        """Queries, keys and values of rows [batch, rows, hidden_size]."""
        if self.qkv_proj is None:
            # Without this barrier, XLA for TPU makes the split into heads part of the matmuls, and changes the weights'
            # layout for it.
            maps = jax.lax.optimization_barrier(linear_maps(x, (self.q_proj, self.k_proj, self.v_proj)))
            queries, keys, values = (heads.reshape(*x.shape[:2], -1, self.head_dim) for heads in maps)
            if self.q_norm is not None and self.k_norm is not None:
                queries, keys = self.q_norm(queries), self.k_norm(keys)
            return Apart(queries, keys, values)
        # Without this barrier, XLA for GPU makes the bias part of the matmul, which it then cannot split over the
        # inputs: few columns leave most multiprocessors idle.
        heads = self.qkv_proj.biased(jax.lax.optimization_barrier(self.qkv_proj.sums(x)))
        if self.q_norm is None or self.k_norm is None:
            return Together(heads, None)
        return Together(heads, HeadNorms(self.q_norm.scale[...], self.k_norm.scale[...], self.q_norm.eps))


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(size, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(size, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(inner, size, bias=bias, dtype=dtype, rngs=rngs)
        self.gate_up_proj = nnx.data(None)  # `models.joined` puts one map in the place of the two

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gate_up_proj is None:
            gate, up = linear_maps(x, (self.gate_proj, self.up_proj))
            return self.down_proj(jax.nn.silu(gate) * up)
        both = self.gate_up_proj(x)
        return self.down_proj(jax.nn.silu(both[..., 0, :]) * both[..., 1, :])


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.self_attn = SelfAttention(config, dtype, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.mlp = MLP(config, dtype, rngs)

    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        layer: int | jax.Array,
        spec: AttentionSpec,
        attention: Attention,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        """Returns the residual stream after the layer, its attention's output to the caller, and the carry."""
        x, added, left, carry = self.halves(x, None, rotation, layer, spec, attention, carry)
        return replicate(x + added), left, carry

    def halves(
        self,
        x: jax.Array,
        added: jax.Array | None,
        rotation: Rotation,
        layer: int | jax.Array,
        spec: AttentionSpec,
        attention: Attention,
        carry: Any,
    ) -> tuple[jax.Array, jax.Array, Any, Any]:
        """As a call, but the stream comes and goes in two summands: each sum is then one kernel with the norm after it.

        added is None for a stream that comes whole.
        """
        x, normed = (x, self.input_layernorm(x)) if added is None else self.input_layernorm.of_sum(x, added)
        mixed, left, carry = self.self_attn(normed, rotation, layer, spec, attention, carry)
        x, normed = self.post_attention_layernorm.of_sum(x, mixed)
        return x, self.mlp(normed), left, carry
