"""Draft heads: small chained layers that guess tokens t+2, t+3, ... from one hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.layers import Linear, RMSNorm


class DraftHead(nnx.Module):
    """h_i = h_{i-1} + W_i RMSNorm(h_{i-1}); what the LM head reads is RMSNorm'(h_i) (paper, Eq. 1)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.linear = Linear(size, size, bias=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.linear.kernel[...] = jnp.zeros_like(self.linear.kernel[...])  # an untrained head repeats its input

    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = hidden + self.linear(self.input_layernorm(hidden))
        return hidden, self.post_layernorm(hidden)


class DraftHeads(nnx.Module):
    """The chain of heads over one hidden state."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = nnx.List([DraftHead(config, dtype, rngs) for _ in range(config.num_draft_heads)])

    def __call__(self, hidden: jax.Array, count: int | None = None) -> jax.Array:
        """LM-head inputs [..., count, hidden_size] of the first `count` heads (None: all), from the last layer's
        output before the final norm."""
        outputs = [jnp.zeros((*hidden.shape[:-1], 0, hidden.shape[-1]), hidden.dtype)]
        for head in list(self.heads)[:count]:
            hidden, output = head(hidden)
            outputs.append(jnp.expand_dims(output, -2))
        return jnp.concatenate(outputs, axis=-2)
