"""Losses: next-token cross-entropy for the backbone, distillation from the backbone for the heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tokenswift_jax.models.decoder import Attention, Decoder


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Nats [...] of int targets [...] under float32 logits [..., vocab]."""
    # a masked sum, not a gather: its gradient is elementwise, where a gather's is a scatter (slow on CPU)
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the values whose mask is true."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask.astype(values.dtype)), 1.0)


def backbone_pass(
    model: Decoder, tokens: jax.Array, positions: jax.Array, attention: Attention
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss (nats a token), hidden states [B, T, d] and logits [B, T, V] of windows [B, T + 1]."""
    hidden, _ = model.hidden(tokens[:, :-1], positions[:, :-1], attention, None)
    logits = model.logits(hidden)
    follows = positions[:, 1:] - positions[:, :-1] == 1
    return masked_mean(cross_entropy(logits, tokens[:, 1:]), follows), hidden, logits


def head_losses(
    model: Decoder, hidden: jax.Array, logits: jax.Array, positions: jax.Array, offset: jax.Array, stride: int
) -> jax.Array:
    """Cross-entropy [heads] of each head against the backbone's own distribution where the guess falls.

    Head i (from 1) at row p guesses what the backbone will say at row p + i; rows are offset, offset + stride, ...
    Drafts are compared with the model's draws, not with the book, so the model is the better teacher.
    """
    heads = model.config.num_draft_heads
    count = (hidden.shape[1] - heads) // stride
    rows = offset + stride * jnp.arange(count, dtype=jnp.int32)
    guesses = jax.nn.log_softmax(model.draft_logits(hidden[:, rows]), axis=-1)
    losses = []
    for head in range(1, heads + 1):
        teacher = jax.nn.softmax(logits[:, rows + head], axis=-1)
        whole = positions[:, rows + head] - positions[:, rows] == head
        losses.append(masked_mean(-jnp.sum(teacher * guesses[:, :, head - 1], axis=-1), whole))
    return jnp.stack(losses)
