"""Many texts at once, with the backbone's states over them: rows whose text ends take the next prompt at once.

`tokenswift_jax.generate` gives no hidden states, and its batch waits for its longest text; both cost more here than the
training itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.models.decoder import Attention, Decoder, causal_attention
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation

_STEPS = 16  # tokens of a row between two looks of the host
_PROMPT_STEP = 64  # prompts are padded to multiples

Cache = list[tuple[jax.Array, jax.Array]]  # keys and values of a layer, [rows, kv_heads, capacity, head_dim]


@dataclass(frozen=True)
class Written:
    """A text.

    Attributes:
      prompt: the number of the prompt.
      tokens: int32 [tokens], prompt and continuation.
      hidden: bfloat16 [tokens, hidden_size], the last layer's output before the final norm; the last row is zero.
    """

    prompt: int
    tokens: np.ndarray
    hidden: np.ndarray


@dataclass
class _Row:
    prompt: int
    tokens: list[int]
    hidden: list[np.ndarray]
    stops: int


@dataclass(frozen=True)
class Start:
    """The beginning of a text.

    Attributes:
      ids: token ids, at least two.
      temperature: of the draws after it.
      stops: the text ends at its stop token of this number, counted from 1.
    """

    ids: Sequence[int]
    temperature: float
    stops: int


def write(
    graph: Any,
    params: Any,
    prompts: Sequence[Start],
    *,
    rows: int,
    capacity: int,
    stops: Sequence[int],
    seed: int,
) -> Iterator[Written]:
    """The texts of prompts, as they end: at a token of `stops` or at `capacity` tokens.

    Prompts that leave less than a quarter of the capacity are skipped. Draws depend on `rows` and on the order.
    """
    config = nnx.merge(graph, params).config
    dtype = jax.tree.leaves(params)[0].dtype
    shape = (rows, config.num_kv_heads, capacity, config.head_dim)
    cache: Cache = [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)]
    waiting = [(n, start) for n, start in enumerate(prompts) if len(start.ids) <= capacity * 3 // 4][::-1]
    last, position, heats = np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    open_rows: list[_Row | None] = [None] * rows
    key = jax.random.key(seed)
    while waiting or any(row is not None for row in open_rows):
        for index in range(rows):
            if open_rows[index] is None and waiting:
                number, start = waiting.pop()
                ids, heats[index] = list(start.ids), start.temperature
                padded = np.zeros((1, -(-len(ids) // _PROMPT_STEP) * _PROMPT_STEP), np.int32)
                padded[0, : len(ids)] = ids
                hidden, cache = _prefill(graph, params, cache, padded, np.int32(index))
                open_rows[index] = _Row(number, ids, [np.asarray(hidden)[: len(ids) - 1]], start.stops)
                # The last token of the prompt is decoded, so that its draw is like all others.
                last[index], position[index] = ids[-1], len(ids) - 1
        key, now = jax.random.split(key)
        drawn, hidden, cache = _decode(graph, params, cache, last, position, heats, now)
        drawn, hidden = np.asarray(drawn), np.asarray(hidden)
        for index, row in enumerate(open_rows):
            if row is None:
                continue
            ids = drawn[:, index].tolist()
            ends = [n + 1 for n, token in enumerate(ids) if token in stops]
            ended = len(ends) >= row.stops
            kept = min(ends[row.stops - 1] if ended else len(ids), capacity - len(row.tokens))
            row.stops -= len(ends)
            row.tokens += ids[:kept]
            row.hidden.append(hidden[:kept, index])
            last[index], position[index] = ids[-1], position[index] + len(ids)
            if ended or len(row.tokens) >= capacity:
                open_rows[index], position[index], heats[index] = None, 0, 0.0
                states = np.concatenate([*row.hidden, np.zeros_like(hidden[:1, 0])])
                yield Written(row.prompt, np.asarray(row.tokens, np.int32), states)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(graph: Any, params: Any, cache: Cache, tokens: jax.Array, row: jax.Array) -> tuple[jax.Array, Cache]:
    model: Decoder = nnx.merge(graph, params)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    hidden, (_, new_keys, new_values), _ = model.hidden(tokens, positions, causal_attention(model.config), None)
    zero = jnp.int32(0)

    def put(stored: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(stored, new.transpose(0, 2, 1, 3), (row, zero, zero, zero))

    filled = [
        (put(keys, new_keys[layer]), put(values, new_values[layer])) for layer, (keys, values) in enumerate(cache)
    ]
    return hidden[0].astype(jnp.bfloat16), filled


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(
    graph: Any,
    params: Any,
    cache: Cache,
    last: jax.Array,
    position: jax.Array,
    heats: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, Cache]:
    model: Decoder = nnx.merge(graph, params)
    capacity = cache[0][0].shape[2]

    def one(carry: Any, key: jax.Array) -> Any:
        tokens, at, stored = carry
        hidden, _, stored = model.hidden(tokens[:, None], at[:, None], _cached_attention(at), stored)
        logits = model.logits(hidden[:, 0])
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        drawn = jnp.argmax(logits + heats[:, None] * noise, axis=-1).astype(jnp.int32)
        return (drawn, jnp.minimum(at + 1, capacity - 1), stored), (drawn, hidden[:, 0].astype(jnp.bfloat16))

    keys = jax.random.split(key, _STEPS)
    (_, _, cache), (drawn, hidden) = jax.lax.scan(one, (last, position, cache), keys)
    return drawn, hidden, cache


def _cached_attention(at: jax.Array) -> Attention:
    """Attention of one token a row over its cache, where the carry is a `Cache`."""

    def attend(
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        assert isinstance(layer, int)
        assert spec.window is None
        queries, keys, values = projected.rotated(rotation)
        batch, _, kv_heads, dim = keys.shape
        rows = jnp.arange(batch)
        old_keys, old_values = carry[layer]
        stored = (old_keys.at[rows, :, at].set(keys[:, 0]), old_values.at[rows, :, at].set(values[:, 0]))
        grouped = queries.reshape(batch, kv_heads, -1, dim)
        scores = jnp.einsum("bkgd,bktd->bkgt", grouped, stored[0]) * jnp.asarray(spec.scale, queries.dtype)
        seen = jnp.arange(stored[0].shape[2], dtype=jnp.int32)[None] <= at[:, None]
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bkgt,bktd->bkgd", weights, stored[1])
        return mixed.reshape(batch, 1, -1, dim), None, [*carry[:layer], stored, *carry[layer + 1 :]]

    return attend
