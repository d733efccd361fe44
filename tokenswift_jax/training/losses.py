"""Losses of backbone and draft heads over packed rows, a chunk of positions at a time.

Without chunks, the logits of all positions and heads would be the largest array of the step ([tokens, heads + 1,
vocab]). With them, memory contains the logits of one chunk at a time, and the backward pass computes them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.windows import Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """Losses summed over positions.

    Attributes:
      base: float32 [], the backbone's loss on the next tokens in nats.
      heads: float32 [heads], the heads' losses in nats.
    """

    base: jax.Array
    heads: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counts:
    """The number of positions in each of the `Sums`: int32 [] and [heads]."""

    base: jax.Array
    heads: jax.Array


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy [...], in nats, of int32 targets [...] under float32 logits [..., vocab].

    It is 0 for a target that is no index of the logits (a token outside the draft vocabulary).
    """
    # Without this masked sum, the gradient is the scatter of a gather; the gradient of the sum is elementwise.
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    nats = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jnp.where(targets < logits.shape[-1], nats, 0.0)


def distillation(logits: jax.Array, aims: jax.Array, temperature: float) -> jax.Array:
    """Cross entropy [...] of float32 logits [..., vocab], divided by the temperature, against the teacher's
    probabilities at that temperature; multiplied by the temperature's square (Hinton, Vinyals, Dean 2015).

    Over a draft vocabulary the probabilities sum to less than 1: a position counts by the teacher's share of it.
    """
    heat = jnp.float32(temperature)
    scaled = logits / heat
    inner = jnp.sum(aims * scaled, axis=-1)
    return (jax.nn.logsumexp(scaled, axis=-1) * jnp.sum(aims, axis=-1) - inner) * heat * heat


def continues(batch: Batch, ahead: int) -> jax.Array:
    """Whether the token `ahead` positions later belongs to the same document, without a jump: bool [batch, length]."""
    segments, positions = (jnp.pad(x, ((0, 0), (0, ahead))) for x in (batch.segments, batch.positions))
    length = batch.tokens.shape[1]
    same = segments[:, ahead : ahead + length] == batch.segments
    near = positions[:, ahead : ahead + length] - batch.positions == ahead
    return same & near & (batch.segments > 0)


def learns_here(batch: Batch, heads: int, offset: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """The positions that count in the losses: bool [batch, length] for the backbone, [heads, batch, length] for the
    heads."""
    base = continues(batch, 1)
    turn = (jnp.arange(batch.tokens.shape[1], dtype=jnp.int32) % stride == offset)[None, None, :]
    guesses = jnp.stack([continues(batch, head + 2) for head in range(heads)])
    return base, guesses & turn


def count(batch: Batch, heads: int, offset: jax.Array, stride: int) -> Counts:
    """The number of positions in the mean of each loss."""
    base, guesses = learns_here(batch, heads, offset, stride)
    return Counts(jnp.sum(base, dtype=jnp.int32), jnp.sum(guesses, axis=(1, 2), dtype=jnp.int32))


def loss_sums(
    model: Decoder,
    hidden: jax.Array,
    head_hidden: jax.Array,
    batch: Batch,
    offset: jax.Array,
    settings: TrainingSettings,
) -> Sums:
    """The losses of a batch, summed.

    Head i (from 0) at position t guesses token t + 2 + i. Its teacher is the backbone's distribution at position
    t + 1 + i, and its label is the text. No gradient flows into the teacher.

    Args:
      model: the decoder, merged from parameters in the dtype of computation.
      hidden: [batch, length, hidden_size], the backbone's hidden states.
      head_hidden: the same shape, the hidden states that the heads read (`hidden`, or those over the draft cache).
      batch: packed rows.
      offset: int32 [], below `settings.head_stride`; the heads learn from positions offset, offset + stride, ...
      settings: loss options.
    """
    heads, stride = settings.heads, settings.head_stride
    length = batch.tokens.shape[1]
    chunk = -(-min(settings.loss_chunk, length) // stride) * stride
    chunks = -(-length // chunk)
    base_rows, head_rows = learns_here(batch, heads, offset, stride)
    behind = chunks * chunk + heads + 1 - length  # so that a chunk can read heads + 1 tokens past its end

    def padded(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, behind)
        return jnp.pad(x, widths)

    rows = (
        padded(hidden, 1),
        padded(head_hidden, 1),
        padded(batch.tokens, 1),
        padded(base_rows, 1),
        padded(head_rows, 2),
    )
    one = partial(_chunk, model, settings, chunk, offset)
    if chunks == 1:
        return one(rows, jnp.int32(0))
    one = jax.checkpoint(one)

    def add(sums: Sums, start: jax.Array) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, one(rows, start)), None

    zero = Sums(jnp.float32(0), jnp.zeros((heads,), jnp.float32))
    return jax.lax.scan(add, zero, chunk * jnp.arange(chunks, dtype=jnp.int32))[0]


def _chunk(
    model: Decoder,
    settings: TrainingSettings,
    chunk: int,
    offset: jax.Array,
    rows: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array],
    start: jax.Array,
) -> Sums:
    hidden, head_hidden, tokens, base_rows, head_rows = rows
    heads, stride, distil = settings.heads, settings.head_stride, settings.distill_weight

    def part(x: jax.Array, size: int, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    text = part(tokens, chunk + heads + 1, 1)
    base, teacher = jnp.float32(0), None
    if settings.what == "all" or distil:
        logits = model.logits(part(hidden, chunk + heads, 1))
        teacher = jax.lax.stop_gradient(logits)
        if settings.what == "all":
            nats = cross_entropy(logits[:, :chunk], text[:, 1 : chunk + 1])
            base = jnp.sum(jnp.where(part(base_rows, chunk, 1), nats, 0.0))

    # The positions of this chunk from which the heads learn; the chunk is a multiple of the stride.
    turns = offset + stride * jnp.arange(chunk // stride, dtype=jnp.int32)
    ahead = turns[:, None] + jnp.arange(1, heads + 1, dtype=jnp.int32)[None, :]
    following = text[:, ahead] if model.config.draft_head_type == "sequential" else None
    guesses = model.score_drafts(model.draft_outputs(part(head_hidden, chunk, 1)[:, turns], following))
    masks = part(head_rows, chunk, 2)[:, :, turns]
    drafted, labels, aims = model.config.draft_vocab, text, None
    if drafted is not None:
        labels = jnp.asarray(drafted.places(model.config.vocab_size))[text]
    if distil:
        assert teacher is not None
        aims = jax.nn.softmax(teacher / jnp.float32(settings.distill_temperature), axis=-1)
        aims = aims if drafted is None else aims[..., jnp.asarray(drafted.ids)]
    sums = []
    for head in range(heads):
        nats = jnp.float32(0)
        if distil < 1:
            nats = nats + jnp.float32(1 - distil) * cross_entropy(guesses[:, :, head], labels[:, turns + head + 2])
        if aims is not None:
            shares = aims[:, turns + head + 1]
            nats = nats + jnp.float32(distil) * distillation(guesses[:, :, head], shares, settings.distill_temperature)
        sums.append(jnp.sum(jnp.where(masks[head], nats, 0.0)))
    return Sums(base, jnp.stack(sums))
