"""The backbone over packed rows, with a choice of the activations that its layers keep for the backward pass."""

from __future__ import annotations

import functools

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tokenswift_jax.models.attention import Attention
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.decoder_layer import DecoderLayer
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.models.rope import Rotation, rotation
from tokenswift_jax.training.attention import packed_attention
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.windows import Batch

_RESIDUAL = "residual"
ATTENTION_BLOCK = 512  # queries of a block; its scores are [heads, 512, length]


def hidden_states(model: Decoder, batch: Batch, remat: str, shares: Shares = ONE_DEVICE) -> jax.Array:
    """The last layer's output [batch, length, hidden_size] before the final norm.

    remat: `none` keeps every activation, `layers` keeps only each layer's input, `offload` keeps that input in host
    memory. shares: the devices of the run; each layer's matrices are gathered here.
    """
    config = model.config
    attention = packed_attention(batch.positions, batch.segments, ATTENTION_BLOCK)
    x = shares.by_rows(model.embed_tokens[...][batch.tokens])
    angles = rotation(config.rope, config.head_dim, batch.positions, wide_dtype(x.dtype))
    policy = None
    if remat == "offload":
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_RESIDUAL],
            offload_src="device",
            offload_dst="pinned_host",
        )
    for index, layer in enumerate(model.layers):
        run = functools.partial(_layer, layer, shares, angles, index, config.attention(index), attention)
        x = shares.gathers_again(run)(x) if remat == "none" else jax.checkpoint(run, policy=policy)(x)
    return x


def gathered_layer(layer: DecoderLayer, shares: Shares) -> DecoderLayer:
    """The layer with all parts of its matrices that the data axis splits."""
    graph, params = nnx.split(layer)
    return nnx.merge(graph, shares.gathered(params))


def _layer(
    layer: DecoderLayer,
    shares: Shares,
    angles: Rotation,
    index: int,
    spec: AttentionSpec,
    attention: Attention,
    x: jax.Array,
) -> jax.Array:
    x = checkpoint_name(x, _RESIDUAL)
    return shares.by_rows(gathered_layer(layer, shares)(x, angles, index, spec, attention, None)[0])
