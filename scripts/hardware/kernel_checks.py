"""Kernels on this machine's device: against their definitions in float64 on its CPU, and how fast they read a cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hardware.clock import seconds_of
from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import tree_attention
from tokenswift_jax.models.config import ModelConfig

LAYERS, LAYER = 2, 1
# Half an eps of the weights and of the result in narrow types; in float32 sums of thousands of products.
_BOUNDS = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-5}


def against_definitions(dtype: Any) -> Iterator[dict[str, Any]]:
    """Relative errors of tree attention for shapes that steps have; whatever must not be read holds NaN."""
    for rows, (group, head_dim) in itertools.product((1, 16, 64), ((4, 128), (7, 64))):
        rng = np.random.default_rng(rows + group + head_dim)
        arguments = _case(rng, rows, group, head_dim, (4097, 130))
        given = {name: jnp.asarray(a, dtype if a.dtype == np.float64 else a.dtype) for name, a in arguments.items()}
        actual = np.asarray(_attend(given).astype(jnp.float32), np.float64)
        rounded = {name: np.asarray(a.astype(jnp.float32), np.float64) for name, a in given.items() if a.dtype == dtype}
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), compiling_for("reference"):
            wide = {name: jnp.asarray(rounded.get(name, a)) for name, a in arguments.items()}
            expected = np.asarray(_attend(wide))
        error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        yield {
            "kernel": "tree_attention",
            "rows": rows,
            "group": group,
            "head_dim": head_dim,
            "dtype": str(dtype),
            "relative_error": error,
            "good": bool(error <= _BOUNDS[str(dtype)]),
        }


def by_length(config: ModelConfig, lengths: tuple[int, ...], dtype: Any, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Share of the copy bandwidth at which a layer's attention reads a cache of the model's shape."""
    heads, dim, capacity = config.num_kv_heads, config.head_dim, max(lengths) + 256
    shape = (LAYERS, 1, heads, capacity, dim)
    keys, values = (jax.random.normal(jax.random.key(seed), shape, dtype) for seed in (1, 2))
    for rows, length in itertools.product((1, 16, 64), lengths):
        own = jax.random.normal(jax.random.key(3), (1, rows, heads, dim), dtype)
        queries = jax.random.normal(jax.random.key(4), (1, rows, config.num_heads, dim), dtype)
        passes = 20

        @jax.jit
        def many(queries: jax.Array, own: jax.Array, length: jax.Array, passes: int = passes) -> jax.Array:
            rows = own.shape[1]

            def one(index: jax.Array, queries: jax.Array) -> jax.Array:
                # Layers take turns, and each pass needs the one before it.
                mixed = [
                    tree_attention(
                        queries,
                        keys,
                        values,
                        own,
                        own,
                        layer=layer,
                        lengths=length[None],
                        tree_mask=jnp.tril(jnp.ones((1, rows, rows), bool)),
                        positions=length + jnp.arange(rows, dtype=jnp.int32)[None],
                        window=None,
                        key_positions=None,
                    )
                    for layer in range(LAYERS)
                ]
                return sum(mixed, queries)

            return jax.lax.fori_loop(0, passes, one, queries)

        at = jnp.int32(length)
        seconds = (
            seconds_of(lambda many=many, queries=queries, own=own, at=at: many(queries, own, at)) / passes / LAYERS
        )
        size = 2 * heads * length * dim * jnp.dtype(dtype).itemsize
        yield {
            "kernel": "tree_attention",
            "rows": rows,
            "length": length,
            "microseconds": 1e6 * seconds,
            "bytes": size,
            "of_copy_bandwidth": size / seconds / bandwidth,
        }


def _attend(arguments: dict[str, jax.Array]) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda a: tree_attention(**a, layer=LAYER, window=None, key_positions=None))
        return run(arguments)


def _case(
    rng: np.random.Generator, rows: int, group: int, head_dim: int, lengths: tuple[int, ...]
) -> dict[str, np.ndarray]:
    heads, capacity, batch = 2, 4608, len(lengths)
    cache = np.full((2, LAYERS, batch, heads, capacity, head_dim), np.nan)
    for row, length in enumerate(lengths):
        cache[:, LAYER, row, :, :length] = rng.normal(size=(2, heads, length, head_dim))
    mask = np.eye(rows, dtype=bool)
    for row in range(1, rows):
        mask[row] |= mask[rng.integers(row)]
    depths = mask.sum(axis=1) - 1
    return {
        "queries": rng.normal(size=(batch, rows, heads * group, head_dim)),
        "keys": cache[0],
        "values": cache[1],
        "own_keys": rng.normal(size=(batch, rows, heads, head_dim)),
        "own_values": rng.normal(size=(batch, rows, heads, head_dim)),
        "lengths": np.asarray(lengths, np.int32),
        "tree_mask": np.broadcast_to(mask, (batch, rows, rows)),
        "positions": (np.asarray(lengths)[:, None] + depths[None]).astype(np.int32),
    }
