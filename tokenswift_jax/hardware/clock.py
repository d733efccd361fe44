"""Wall time of work on a device (warmed up, repeated, medians), and the speeds of memory and of products."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PIECE, _PIECES = 8 << 20, 24  # bytes read at a time, and how many pieces there are: more than caches have room for


def seconds_of(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of `work`, which returns its arrays; the first call, with its compilation, does not count."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def copy_bandwidth(size: int, passes: int = 10) -> float:
    """Bytes a second of memory traffic, read and written, of a program that rewrites `size` bytes again and again."""
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)

    # Without donation, XLA copies the argument before the first pass.
    @partial(jax.jit, donate_argnums=0)
    def rewrite(x: jax.Array) -> jax.Array:
        # Behind the barrier two passes cannot become one.
        return jax.lax.fori_loop(0, passes, lambda _, y: jax.lax.optimization_barrier(-y), x)

    def again() -> jax.Array:
        nonlocal x
        x = rewrite(x)
        return x

    return 2 * size * passes / seconds_of(again)


def product_rate(size: int, dtype: Any, passes: int = 10) -> float:
    """Floating-point operations a second of square matrix products of random numbers, one after the other."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), dtype) for key in keys)

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        scale = jnp.asarray(size**-0.5, dtype)  # so that no pass overflows the next
        return jax.lax.fori_loop(0, passes, lambda _, product: (left @ product) * scale, right)

    return 2 * size**3 * passes / seconds_of(lambda: multiply(left, right))


def read_bandwidth(threads: int, seconds: float) -> float:
    """The best bytes a second at which `threads` threads of the host read memory that no cache contains (`memchr`)."""
    memory, found = np.ones(_PIECE * _PIECES, np.uint8), 0.0
    search = ctypes.CDLL(None).memchr
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    part = _PIECE // threads

    def read(start: int) -> tuple[float, float]:
        begun = time.perf_counter()
        search(memory.ctypes.data + start, 255, part)
        return begun, time.perf_counter()

    until = time.monotonic() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.monotonic() < until:
            for piece in range(_PIECES):
                spans = list(pool.map(read, [piece * _PIECE + part * thread for thread in range(threads)]))
                found = max(found, part * threads / (max(end for _, end in spans) - min(begin for begin, _ in spans)))
    return found
