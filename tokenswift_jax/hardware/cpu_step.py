"""A CPU's step of plain decoding and of verification, with the Numba kernels and with XLA alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import cpu
from tokenswift_jax.kv.dense import cache_bytes, empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.model import Model
from tokenswift_jax.step.loop import exact_products


@dataclass(frozen=True)
class CpuStep:
    """The shortest times of a step among many.

    Attributes:
      positions, rows: committed positions in the cache, and verified rows.
      numba, xla: seconds and processor seconds of all threads, with the Numba kernels and with XLA alone.
      bytes_read: of the weights and of the cache's live part, each once.
    """

    positions: int
    rows: int
    numba: tuple[float, float]
    xla: tuple[float, float]
    bytes_read: int


def cpu_steps(model: Model, positions: Sequence[int], rows: Sequence[int], seconds: float) -> list[CpuStep]:
    """Times a greedy step for all numbers of rows behind all numbers of positions. Both programs of all settings run
    in turn until `seconds` are over."""
    capacity = -(-(max(positions) + max(rows)) // 1024) * 1024
    limit, programs, caches = cpu.ROWS, {}, {}
    for name in ("numba", "xla"):
        cpu.ROWS = limit if name == "numba" else 0
        caches[name] = empty_cache(model.config, 1, capacity, jnp.float32)
        for count in rows:
            given = (model.params, caches[name], jnp.zeros((1, count), jnp.int32), jnp.zeros((1,), jnp.int32))
            compiled = jax.jit(partial(_step, model.graphdef), donate_argnums=1).lower(*given).compile()
            programs[name, count] = compiled
    cpu.ROWS = limit
    times: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    until = time.monotonic() + seconds
    while not times or time.monotonic() < until:
        for name, count, length in [(name, count, n) for n in positions for count in rows for name in caches]:
            given = jnp.zeros((1, count), jnp.int32), jnp.full((1,), length, jnp.int32)
            begun, used = time.perf_counter(), time.process_time()
            done = programs[name, count](model.params, caches[name], *given)
            caches[name] = jax.block_until_ready(done)[1]
            spent = time.perf_counter() - begun, time.process_time() - used
            times.setdefault((name, count, length), []).append(spent)
    shortest = {key: tuple(min(part) for part in zip(*own, strict=True)) for key, own in times.items()}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    read = {n: weights + cache_bytes(model.config, 1, n, jnp.dtype(jnp.float32)) for n in positions}
    return [
        CpuStep(n, count, shortest["numba", count, n], shortest["xla", count, n], read[n])
        for n in positions
        for count in rows
    ]


def _step(graph: Any, params: Any, cache: Any, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, Any]:
    """The greedy tokens after a path of rows [1, rows] behind `length` positions, and the cache."""
    rows = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    batch = RowBatch(tokens, length[:, None] + rows, length, TreeMask(rows[:, :, None] >= rows[:, None]))
    model = nnx.merge(graph, params)
    with exact_products(cache.dtype):
        done, cache = forward_rows(model, batch, cache)
        return jnp.argmax(model.logits(done.hidden), axis=-1), cache
