"""One tick of a prompt that goes through the stages of a mesh: each stage computes a chunk, and hands it on."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.forward import forward_own_layers
from tokenswift_jax.kv.row_batch import next_rows
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rows import over_rows
from tokenswift_jax.parallel.rules import placed
from tokenswift_jax.parallel.stages import handed_on, this_stage
from tokenswift_jax.step.exact_products import exact_products


@pytree
class Flow:
    """The rows between the stages.

    Attributes:
      hidden: [stages, batch, forwards, rows, hidden_size]; entry s is the chunk that stage s gets from the stage before
        it, and entry 0 the output of the last stage.
    """

    hidden: jax.Array = axes("stages", "batch", "forwards", "rows", "embed")


@pytree
class Tick:
    """The work of all stages in a tick. A chunk is computed in forwards of equally many rows.

    Attributes:
      tokens: int32 [batch, forwards, rows], the chunk that enters the first stage.
      starts: int32 [stages, forwards], the first position of each forward of each stage's chunk.
      counts: int32 [stages], the forwards of each stage's chunk; 0 for a stage without one.
    """

    tokens: jax.Array = axes("batch", "forwards", "rows")
    starts: jax.Array = axes("stages", "forwards")
    counts: jax.Array = axes("stages")


def no_rows(stages: int, batch: int, forwards: int, rows: int, size: int, dtype: jnp.dtype) -> Flow:
    """The flow before the first tick."""
    return Flow(jnp.zeros((stages, batch, forwards, rows, size), dtype))


def run_tick(graph: nnx.GraphDef, params: Any, tick: Tick, flow: Flow, cache: FullCache) -> tuple[Flow, FullCache]:
    """The flow after the tick, and the cache with the K/V of every stage's chunk in the layers of that stage."""
    batch = tick.tokens.shape[0]
    return placed(over_rows(partial(_run_tick, graph), (params, tick, flow, cache), (2, 3), batch))


def _run_tick(graph: nnx.GraphDef, params: Any, tick: Tick, flow: Flow, cache: FullCache) -> tuple[Flow, FullCache]:
    model = nnx.merge(graph, params)
    starts, count = tick.starts[0], tick.counts[0]
    batch = tick.tokens.shape[0]

    def forward(index: jax.Array, state: tuple) -> tuple:
        hidden, cache = state
        tokens, x = (lax.dynamic_index_in_dim(each, index, 1, keepdims=False) for each in (tick.tokens, hidden))
        start = jnp.broadcast_to(starts[index], (batch,))
        x, cache = forward_own_layers(model, next_rows(tokens, start), x, cache)
        return lax.dynamic_update_index_in_dim(hidden, x, index, 1), cache

    with exact_products(cache.dtype):
        entering = replicate(model.embed(tick.tokens))
        hidden = jnp.where(this_stage() == 0, entering, flow.hidden[0])
        hidden, cache = lax.fori_loop(jnp.int32(0), count, forward, (hidden, cache))
        return Flow(handed_on(hidden)[None]), cache
