"""A CPU's step of plain decoding and of verification, with the Numba kernels and with XLA alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels import cpu
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.model import Model
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import Cost, forward_cost
from tokenswift_jax.step.exact_products import exact_products


@dataclass(frozen=True)
class CpuStep:
    """The shortest times of a step among many.

    Attributes:
      positions, rows: committed positions in the cache, and verified rows.
      numba, xla: seconds and processor seconds of all threads, with the Numba kernels and with XLA alone.
      cost: the least that the step reads, writes and computes.
    """

    positions: int
    rows: int
    numba: tuple[float, float]
    xla: tuple[float, float]
    cost: Cost


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
    return [
        CpuStep(n, count, shortest["numba", count, n], shortest["xla", count, n], cost)
        for n in positions
        for count in rows
        for cost in [forward_cost(model.config, count, n, 4)]
    ]


def numpy_products(config: ModelConfig, rows: Sequence[int], rounds: int = 10) -> dict[int, float]:
    """Seconds of a step's products with its weights by NumPy, that is by a BLAS library: the shortest of some rounds,
    by rows. Nothing else of a step is computed."""
    size, inner = config.hidden_size, config.num_heads * config.head_dim
    joined = inner + 2 * config.num_kv_heads * config.head_dim
    gate_up, down = (size, 2 * config.intermediate_size), (config.intermediate_size, size)
    shapes = config.num_layers * [(size, joined), (inner, size), gate_up, down] + [(size, config.vocab_size)]
    matrices = [np.ones(shape, np.float32) for shape in shapes]
    given = {(shape[0], count): np.ones((count, shape[0]), np.float32) for shape in shapes for count in rows}
    shortest = dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for count in rows:
            begun = time.perf_counter()
            for matrix in matrices:
                np.matmul(given[matrix.shape[0], count], matrix)
            shortest[count] = min(shortest[count], time.perf_counter() - begun)
    return shortest


def _step(graph: Any, params: Any, cache: Any, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, Any]:
    """The greedy tokens after a path of rows [1, rows] behind `length` positions, and the cache."""
    rows = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    batch = RowBatch(tokens, length[:, None] + rows, length, TreeMask(rows[:, :, None] >= rows[:, None]))
    model = nnx.merge(graph, params)
    with exact_products(cache.dtype):
        done, cache = forward_rows(model, batch, cache)
        return jnp.argmax(model.logits(done.hidden), axis=-1), cache
