"""Times one step of plain decoding and of verification on this CPU, by rows and positions, with Numba and without.

    python scripts/cpu_step.py --model smollm2 --rows 1 4 8 --positions 16 1024 4096 7000

Both programs run in turn, many rounds; the table has the shortest times, in ms, and the processor time of all threads
beside them, which other programs on the machine disturb less. The bound is the bytes of the weights and of the cache
over the speed at which two threads read memory here (`hardware.clock.read_bandwidth`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tokenswift_jax as ts
from pallas_kernels import cpu
from tokenswift_jax.hardware.clock import read_bandwidth
from tokenswift_jax.kv.dense import cache_bytes, empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.step.loop import exact_products


def step(graph: Any, params: Any, cache: Any, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, Any]:
    """The greedy tokens after a path of rows [1, rows] behind `length` positions, and the cache."""
    rows = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    batch = RowBatch(tokens, length[:, None] + rows, length, TreeMask((rows[:, None] >= rows)[None]))
    model = nnx.merge(graph, params)
    with exact_products(cache.dtype):
        done, cache = forward_rows(model, batch, cache)
        return jnp.argmax(model.logits(done.hidden), axis=-1), cache


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory, name or hub id; the bundled demo without")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--positions", type=int, nargs="+", default=[16, 1024, 4096, 7000])
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring")
    arguments = parser.parse_args(argv)
    model = ts.load(arguments.model)
    capacity = -(-(max(arguments.positions) + max(arguments.rows)) // 1024) * 1024
    speed = {threads: read_bandwidth(threads, 5) for threads in (1, 2)}
    load = os.getloadavg()[0]
    read = f"{speed[1] / 1e9:.1f} GB/s with one thread, {speed[2] / 1e9:.1f} with two"
    print(f"reads {read}; load {load:.1f}", flush=True)
    limit, programs, caches = cpu.ROWS, {}, {}
    for name in ("numba", "xla"):
        cpu.ROWS = limit if name == "numba" else 0
        caches[name] = empty_cache(model.config, 1, capacity, jnp.float32)
        for rows in arguments.rows:
            given = (model.params, caches[name], jnp.zeros((1, rows), jnp.int32), jnp.zeros((1,), jnp.int32))
            compiled = jax.jit(partial(step, model.graphdef), donate_argnums=1).lower(*given).compile()
            programs[name, rows] = compiled
    times: dict[tuple, list[tuple[float, float]]] = {}
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        for key in [(n, rows, name) for n in arguments.positions for rows in arguments.rows for name in caches]:
            n, rows, name = key
            tokens, length = jnp.zeros((1, rows), jnp.int32), jnp.full((1,), n, jnp.int32)
            begun, used = time.perf_counter(), time.process_time()
            done = programs[name, rows](model.params, caches[name], tokens, length)
            caches[name] = jax.block_until_ready(done)[1]
            times.setdefault(key, []).append((time.perf_counter() - begun, time.process_time() - used))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    print("positions rows  numba: ms (processor)  xla: ms (processor)  bound ms")
    for n in arguments.positions:
        bound = 1e3 * (weights + cache_bytes(model.config, 1, n, jnp.dtype(jnp.float32))) / speed[2]
        for rows in arguments.rows:
            cells = [(min(part) * 1e3 for part in zip(*times[n, rows, name], strict=True)) for name in caches]
            (numba, numba_used), (xla, xla_used) = cells
            print(f"{n:9,} {rows:4}  {numba:8.1f} ({numba_used:6.1f})  {xla:12.1f} ({xla_used:6.1f})  {bound:14.1f}")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; jax {jax.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
