"""Teacher forcing: finished texts through the target in large causal chunks over a fresh cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.cache.full import FullCache, empty_cache, round_up
from tokenswift_jax.decoding.forward import causal_mask, forward_rows
from tokenswift_jax.decoding.loop import exact_products
from tokenswift_jax.decoding.room import check_memory
from tokenswift_jax.errors import UserError

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

ROWS = 256


def teacher_forced(model: Model, texts: list[list[int]]) -> Iterator[tuple[int, jax.Array]]:
    """Chunks (start, hidden [batch, ROWS, hidden_size]) of the texts, hidden before the final norm; rows past a text's
    end mean nothing.

    Raises:
      UserError: a text is empty or longer than the model's positions.
    """
    tokens = padded(texts)
    limit = model.config.max_position_embeddings
    if min(map(len, texts)) < 1 or max(map(len, texts)) > limit:
        raise UserError(f"a text to score holds 1 to {limit} tokens, not {sorted({len(text) for text in texts})}")
    dtype = jax.tree.leaves(model.params)[0].dtype
    check_memory(model.config, len(texts), tokens.shape[1], dtype)
    cache = empty_cache(model.config, len(texts), tokens.shape[1], dtype)
    function = chunk_program(model.graphdef)
    for start in range(0, max(map(len, texts)), ROWS):
        piece = jnp.asarray(tokens[:, start : start + ROWS])
        hidden, cache = function(model.params, piece, jnp.asarray(start, jnp.int32), cache)
        yield start, hidden


def padded(texts: list[list[int]]) -> np.ndarray:
    """The texts as int32 [batch, capacity], 0 past their ends; capacity is a multiple of ROWS."""
    tokens = np.zeros((len(texts), round_up(max(map(len, texts)), ROWS)), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens


@functools.cache
def chunk_program(graph: nnx.GraphDef) -> Callable:
    """The jitted forward of one chunk, its cache donated: (params, tokens, start, cache) -> (hidden, cache)."""

    def run(params: Any, tokens: jax.Array, start: jax.Array, cache: FullCache) -> tuple[jax.Array, FullCache]:
        batch, rows = tokens.shape
        lengths = jnp.broadcast_to(start, (batch,))
        positions = lengths[:, None] + jnp.arange(rows, dtype=jnp.int32)[None, :]
        with exact_products(cache.keys.dtype):
            mask = causal_mask(batch, rows)
            done, cache = forward_rows(nnx.merge(graph, params), tokens, positions, cache, lengths, mask)
        return done.hidden, cache

    return jax.jit(run, donate_argnums=3)
