"""Draft heads: small layers that guess tokens t+2, t+3, ... from one hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.layers import Linear, RMSNorm
from tokenswift_jax.parallel.residual import replicate


class ChainedHead(nnx.Module):
    """h_i = h_{i-1} + W_i RMSNorm(h_{i-1}); the LM head reads RMSNorm'(h_i) (paper, Eq. 1)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.linear = Linear(size, size, bias=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.linear.kernel[...] = jnp.zeros_like(self.linear.kernel[...])  # an untrained head repeats its input

    def __call__(self, hidden: jax.Array, embedded: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        assert embedded is None
        # The map is gathered before it is added. Otherwise the state would be split too, all the way to where it comes
        # from, and each norm would gather it again.
        hidden = hidden + replicate(self.linear(self.input_layernorm(hidden)))
        return hidden, self.post_layernorm(hidden)


class SequentialHead(nnx.Module):
    """h_i = h_{i-1} + down(silu(gate z) * up z), z = [RMSNorm(h_{i-1}); RMSNorm_e(e)]; the LM head reads RMSNorm'(h_i).

    e is the embedding of the token just above the guess: along one path of drafts the guesses depend on each other
    (Ankner et al. 2024, "Hydra").
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.token_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.gate_proj = Linear(2 * size, size, bias=False, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(2 * size, size, bias=False, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(size, size, bias=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = RMSNorm(size, eps=eps, dtype=dtype)
        self.down_proj.kernel[...] = jnp.zeros_like(self.down_proj.kernel[...])  # an untrained head repeats its input

    def __call__(self, hidden: jax.Array, embedded: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        assert embedded is not None
        z = jnp.concatenate([self.input_layernorm(hidden), self.token_layernorm(embedded)], axis=-1)
        hidden = replicate(hidden + self.down_proj(jax.nn.silu(self.gate_proj(z)) * self.up_proj(z)))
        return hidden, self.post_layernorm(hidden)


class MedusaHead(nnx.Module):
    """The LM head reads x + silu(W x + b); x is the backbone's state after the final norm, and heads are independent.

    Source: Cai et al. 2024, "Medusa"; here the heads share the backbone's LM head.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = Linear(config.hidden_size, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)
        self.linear.kernel[...] = jnp.zeros_like(self.linear.kernel[...])  # an untrained head repeats its input

    def __call__(self, hidden: jax.Array, embedded: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        assert embedded is None
        return hidden, hidden + replicate(jax.nn.silu(self.linear(hidden)))


_HEADS = {"chained": ChainedHead, "sequential": SequentialHead, "medusa": MedusaHead}


class DraftHeads(nnx.Module):
    """The draft heads over one hidden state, all of the configuration's type."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        head = _HEADS[config.draft_head_type]
        self.heads = nnx.List([head(config, dtype, rngs) for _ in range(config.num_draft_heads)])

    def step(self, index: int, hidden: jax.Array, embedded: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Head `index`'s hidden state h_i and LM-head input, both [..., hidden_size].

        hidden is h_{i-1} (`Decoder.heads_input` for head 0, and for every Medusa head). embedded is the embedding
        [..., hidden_size] of the token above the guess for sequential heads, None for others.
        """
        return self.heads[index](hidden, embedded)

    def __call__(self, hidden: jax.Array, count: int | None = None, embedded: jax.Array | None = None) -> jax.Array:
        """LM-head inputs [..., count, hidden_size] of the first `count` heads (None: all), from `Decoder.heads_input`;
        embedded is [..., count, hidden_size] for sequential heads, None for others."""
        outputs = [jnp.expand_dims(hidden, -2)[..., :0, :]]
        for index in range(len(self.heads) if count is None else count):
            hidden, output = self.step(index, hidden, None if embedded is None else embedded[..., index, :])
            outputs.append(jnp.expand_dims(output, -2))
        return jnp.concatenate(outputs, axis=-2)
