"""Wall time of work on a device: warmed up, repeated, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


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
