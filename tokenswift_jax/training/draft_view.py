"""Hidden states as drafting will see them: each token reads the draft cache of its step, with K/V of the full pass.

In the `partial` schedule, decoding runs only the root's own forward over the draft cache, and computed the K/V there
with the whole text in view. So two streams go through the layers side by side: the full stream computes K/V, and the
draft stream reads those at the positions that the draft cache selects (`tokenswift_jax.kv.draft_positions`).

Training has this second form of that rule because a step needs the states at all positions of a row at once; the
engine would take one pass per token. tests/training/test_draft_view.py compares both forms, and the drafts from these
states with the drafts that the engine accepts.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.decoder_layer import DecoderLayer
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation, rotation
from tokenswift_jax.training.attention import packed_attention
from tokenswift_jax.training.forward import ATTENTION_BLOCK, gathered_layer
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.windows import Batch

_PROMPT_STREAM = 0x6472  # keeps these draws independent of every other use of the seed


def prompt_rows(seed: int, step: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """The draws of a step: a uniform float32 [], which decides whether the step reads the draft cache, and a prompt
    length int32 [] in [1, length)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PROMPT_STREAM), step)
    which, where = jax.random.split(key)
    return jax.random.uniform(which), jax.random.randint(where, (), 1, length, jnp.int32)


def draft_view_states(
    model: Decoder, batch: Batch, prompt: jax.Array, size: int, sinks: int, shares: Shares = ONE_DEVICE
) -> tuple[jax.Array, jax.Array]:
    """Hidden states [batch, length, hidden_size] over the full cache and over the draft cache.

    Tokens of the first document of a row read a draft cache of `size` slots. The first selection takes place after
    `prompt` tokens (or at the first token that no longer fits), and another whenever the cache is used up; in between,
    the newest positions replace those of the lowest scores. Tokens of later documents of the row see their whole
    document, which is exact as long as it fits the draft cache.

    Args:
      model: the decoder, merged.
      batch: packed rows.
      prompt: int32 [], tokens of the text at the first selection.
      size, sinks: slots of the draft cache, and how many of them contain the first positions.
      shares: the devices of the run; each layer's matrices are gathered here.
    """
    config = model.config
    attention = packed_attention(batch.positions, batch.segments, ATTENTION_BLOCK)
    angles = rotation(config.rope, config.head_dim, batch.positions, wide_dtype(jnp.float32))
    full = draft = shares.by_rows(model.embed_tokens[...][batch.tokens])

    def run(layer: DecoderLayer, index: int, full: jax.Array, draft: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer, spec = gathered_layer(layer, shares), config.attention(index)
        full, (queries, keys, values), _ = layer(full, angles, index, spec, attention, None)
        ranks, begins = _selections(config, index, queries, keys, batch, prompt, size, sinks)
        look = functools.partial(_attend_draft, config, batch, keys, values, ranks, begins, size, sinks)
        draft, _, _ = layer(draft, angles, index, spec, look, None)
        return shares.by_rows(full), shares.by_rows(draft)

    for index, layer in enumerate(model.layers):
        full, draft = shares.gathers_again(functools.partial(run, layer, index))(full, draft)
    return full, draft


def _selections(
    config: ModelConfig,
    layer: int,
    queries: jax.Array,
    keys: jax.Array,
    batch: Batch,
    prompt: jax.Array,
    size: int,
    sinks: int,
) -> tuple[jax.Array, jax.Array]:
    """The rank of every key in each selection, int32 [selections, batch, kv_heads, length], and the position of each
    selection, int32 [selections], which chooses among all keys before that position."""
    length, kept = keys.shape[1], size - sinks + 1
    count = max(1, -(-(length - size - 1) // kept))
    begins = jnp.maximum(prompt, size + 1) + kept * jnp.arange(count, dtype=jnp.int32)
    rows = jnp.arange(length, dtype=jnp.int32)
    window = config.sliding_windows[layer]
    wide = wide_dtype(keys.dtype)
    ranks = []
    for at in begins:
        query = jax.lax.dynamic_slice_in_dim(queries, jnp.minimum(at, length) - 1, 1, axis=1)[:, 0]
        grouped = query.reshape(*query.shape[:1], config.num_kv_heads, config.group_size, -1)
        summed = jnp.sum(grouped.astype(wide), axis=2)
        scores = jnp.einsum("bkd,bskd->bks", summed, keys.astype(wide))
        free = (rows >= sinks) & (rows < at)
        if window is not None:
            free &= rows > at - window
        scores = jnp.where(free[None, None] & (batch.segments == 1)[:, None], scores, -jnp.inf)
        order = jnp.argsort(scores, axis=-1, descending=True, stable=True)
        ranks.append(jnp.argsort(order, axis=-1).astype(jnp.int32))
    return jnp.stack(ranks), begins


def _attend_draft(
    config: ModelConfig,
    batch: Batch,
    keys: jax.Array,
    values: jax.Array,
    ranks: jax.Array,
    begins: jax.Array,
    size: int,
    sinks: int,
    layer: int | jax.Array,
    projected: Projected,
    rotation: Rotation,
    spec: AttentionSpec,
    carry: Any,
) -> tuple[jax.Array, None, Any]:
    """Attention over the draft cache's positions, with K/V of the full pass, and over each token's own K/V."""
    queries, own_keys, own_values = projected.rotated(rotation)
    length, window = keys.shape[1], spec.window
    columns = jnp.arange(length, dtype=jnp.int32)

    @jax.checkpoint
    def block(queries: jax.Array, own_keys: jax.Array, own_values: jax.Array, low: jax.Array) -> jax.Array:
        count = queries.shape[1]
        rows = low + jnp.arange(count, dtype=jnp.int32)
        segments = jax.lax.dynamic_slice_in_dim(batch.segments, low, count, axis=1)
        positions = jax.lax.dynamic_slice_in_dim(batch.positions, low, count, axis=1)
        seen = (columns[None, :] < rows[:, None])[None] & (segments[:, :, None] == batch.segments[:, None, :])
        if window is not None:
            seen &= positions[:, :, None] - batch.positions[:, None, :] < window
        latest = (
            jnp.sum(rows[:, None] >= begins[None, :], axis=1, dtype=jnp.int32) - 1
        )  # -1: before the first selection
        begin = begins[jnp.maximum(latest, 0)]
        rank = ranks[jnp.maximum(latest, 0)].transpose(1, 2, 0, 3)  # [batch, kv_heads, rows, length]
        left = size - sinks - (rows - begin)
        visible = (columns < sinks)[None, :] | (columns[None, :] >= begin[:, None])
        visible = visible[None, None] | (rank < left[None, None, :, None])
        whole = (latest < 0)[None, :] | (segments != 1)
        visible = visible | whole[:, None, :, None]
        mask = seen[:, None] & visible
        itself = jnp.broadcast_to(jnp.eye(count, dtype=bool)[None, None], (*mask.shape[:2], count, count))
        mask = jnp.repeat(jnp.concatenate([mask, itself], axis=-1), config.group_size, axis=1)
        return jax.nn.dot_product_attention(
            queries,
            jnp.concatenate([keys, own_keys], axis=1),
            jnp.concatenate([values, own_values], axis=1),
            mask=mask,
            scale=spec.scale,
        )

    parts = []
    for low in range(0, length, ATTENTION_BLOCK):
        own = slice(low, min(low + ATTENTION_BLOCK, length))
        parts.append(block(queries[:, own], own_keys[:, own], own_values[:, own], jnp.int32(low)))
    return jnp.concatenate(parts, axis=1), None, carry
