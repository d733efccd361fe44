"""Compiled programs: a chunk of iterations, a chunk of prefill, and the catch-up before drafting resumes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.commit_text.reference import write_at
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import next_rows
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.rows import EVERY, ROWS, over_groups, over_rows
from tokenswift_jax.parallel.rules import placed
from tokenswift_jax.sample.logprobs import Logprobs
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.speculate.drafter import CommittedText, Drafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.step.iteration import Emitted, iterate
from tokenswift_jax.step.state import DecodeState, StepInputs
from tokenswift_jax.step.stream import run_tick
from tokenswift_jax.step.teacher_forced_drafts import accepted_rows
from tokenswift_jax.token_log import RECORD


@pytree
class Chunk:
    """The results of one chunk.

    Attributes:
      emitted: the emitted tokens, `capacity` entries per row.
      counts: int32 [batch], number of emitted tokens that count.
      finish: int32 [batch], `DecodeState.finish` after the chunk.
      length: int32 [batch], committed positions after the chunk.
      iterations: int32 [], number of iterations run; on a mesh with a data axis, of the group that ran the most.
    """

    emitted: Emitted
    counts: jax.Array = axes("batch")
    finish: jax.Array = axes("batch")
    length: jax.Array = axes("batch")
    iterations: jax.Array = axes()


def run_chunk(
    graph: nnx.GraphDef, plan: Plan, capacity: int, inputs: StepInputs, state: DecodeState, iterations: jax.Array
) -> tuple[DecodeState, Chunk]:
    """Iterates until a row has no room for another iteration in its `capacity` records, all rows have finished, or
    `iterations` (int32 []) have run, without synchronisation with the host in between.

    Negative `iterations`: that many run although all rows have finished, do all their work and commit nothing. On a
    mesh with a data axis, each group of devices iterates for its own rows."""
    given = inputs, state, iterations
    chunk = Chunk(emitted=ROWS, counts=ROWS, finish=ROWS, length=ROWS, iterations=EVERY)  # pyright: ignore[reportArgumentType]
    batch = state.length.shape[0]
    return placed(over_rows(partial(_run_chunk, graph, plan, capacity), given, (1, chunk), batch))


def _run_chunk(
    graph: nnx.GraphDef, plan: Plan, capacity: int, inputs: StepInputs, state: DecodeState, iterations: jax.Array
) -> tuple[DecodeState, Chunk]:
    model = nnx.merge(graph, inputs.params)
    batch, step = state.length.shape[0], plan.depth + 1

    def unfinished(carry: tuple) -> jax.Array:
        state, _, _, counts, done = carry
        running = (state.finish == Finish.RUNNING).any() | (iterations < 0)
        return running & (counts.max() + step <= capacity) & (done < jnp.abs(iterations))

    def body(carry: tuple) -> tuple:
        state, prepared, emitted, counts, done = carry
        state, prepared, new, count = iterate(model, state, prepared, inputs, plan)
        emitted = jax.tree.map(partial(write_at, starts=counts), emitted, new)
        # Without `placed`, XLA splits some arrays of the state in the loop otherwise than around it, and gathers them.
        return *placed((state, prepared)), emitted, counts + count, done + 1

    with exact_products(state.cache.dtype):
        # Iterations of other plans, and prefill, prepare nothing for this plan's drafter: a chunk begins with its own.
        prepared = placed(plan.drafter.prepare(model, state.hidden, plan.heads_verified(batch)))
        nothing, zeros = _nothing(plan, batch, capacity), jnp.zeros((batch,), jnp.int32)
        carry = (state, prepared, nothing, zeros, jnp.zeros((), jnp.int32))
        state, _, emitted, counts, done = jax.lax.while_loop(unfinished, body, carry)
    return state, Chunk(emitted, counts, state.finish, state.length, over_groups(done))


def _nothing(plan: Plan, batch: int, capacity: int) -> Emitted:
    """Empty arrays for the tokens that a chunk emits."""
    records, logprobs = jnp.zeros((batch, capacity, len(RECORD)), jnp.int32), None
    if plan.logprobs is not None:
        top = jnp.zeros((batch, capacity, plan.logprobs.top), jnp.int32)
        logprobs = Logprobs(jnp.zeros((batch, capacity), jnp.float32), top, top.astype(jnp.float32))
    return Emitted(records, logprobs)


def causal_chunk(
    graph: nnx.GraphDef, params: Any, tokens: jax.Array, start: jax.Array, cache: FullCache
) -> tuple[jax.Array, FullCache]:
    """The last layer's output [batch, rows, hidden_size], before the final norm, of tokens int32 [batch, rows] at
    positions start (int32 []) .., and the cache with their K/V in its slots."""
    hidden, cache = over_rows(partial(_causal_chunk, graph), (params, tokens, start, cache), (ROWS, 3), tokens.shape[0])
    return hidden, placed(cache)


def _causal_chunk(
    graph: nnx.GraphDef, params: Any, tokens: jax.Array, start: jax.Array, cache: FullCache
) -> tuple[jax.Array, FullCache]:
    model = nnx.merge(graph, params)
    rows = next_rows(tokens, jnp.broadcast_to(start, tokens.shape[:1]))
    with exact_products(cache.dtype):
        done, cache = forward_rows(model, rows, cache)
    return done.hidden, cache


def prefill_chunk(graph: nnx.GraphDef, params: Any, tokens: jax.Array, start: jax.Array, cache: FullCache) -> FullCache:
    """`causal_chunk` for the cache alone: XLA drops the last layer's unused attention and MLP."""
    return causal_chunk(graph, params, tokens, start, cache)[1]


def catch_up(config: ModelConfig, drafter: Drafter, settings: SequenceParams, state: DecodeState) -> DecodeState:
    """Brings the state of a drafter up to the committed length: after prefill, and before drafting resumes after
    iterations of other plans."""
    batch = state.length.shape[0]
    return placed(over_rows(partial(_catch_up, config, drafter), (settings, state), 1, batch))


def _catch_up(config: ModelConfig, drafter: Drafter, settings: SequenceParams, state: DecodeState) -> DecodeState:
    text = CommittedText(config, state.tokens, state.length, settings.ngram_lag, state.cache, state.query)
    own = [part.catch_up(kept, text) for part, kept in zip(drafter.parts, state.drafter, strict=True)]
    return replace(state, drafter=tuple(own))


@functools.cache
def compiled(kind: str, graph: nnx.GraphDef | None, *static: Any) -> Callable:
    """The jitted program of a kind (`chunk`, `prefill`, `causal`, `tick`, `catch_up`, `accepted rows`, `state`); its
    state or cache is donated. `Model.program` finds those of a model sooner."""
    if kind == "state":
        (layout,) = static
        return jax.jit(lambda tokens, lengths: placed(layout.state(tokens, lengths, cache=None)))
    if kind == "chunk":
        return jax.jit(functools.partial(run_chunk, graph, *static), donate_argnums=1)
    if kind == "accepted rows":
        return jax.jit(functools.partial(accepted_rows, graph, *static))
    if kind == "tick":
        assert graph is not None
        return jax.jit(functools.partial(run_tick, graph), donate_argnums=(2, 3))
    if kind in ("prefill", "causal"):
        function = prefill_chunk if kind == "prefill" else causal_chunk
        return jax.jit(functools.partial(function, graph), donate_argnums=3)
    return jax.jit(functools.partial(catch_up, *static), donate_argnums=1)
