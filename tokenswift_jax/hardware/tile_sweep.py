"""Tree attention with other tiles than decoding's, on this machine's device: their times and errors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import reference
from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
from tokenswift_jax.hardware.clock import seconds_of
from tokenswift_jax.hardware.kernel_speed import tree_call
from tokenswift_jax.hardware.variants import AttentionSizes
from tokenswift_jax.models.config import ModelConfig

LAYERS = 8  # after 16,384 tokens of Llama-3.1-8B 537 MB: no second-level cache holds them
TURNS = 4
RAGGED = 13  # slots that the check sees past the longest length; those after them hold NaN
BOUND = 2**-7  # half an eps of bfloat16 for the weights, and for the result
WORKERS = 8
Case = tuple[int, AttentionSizes]  # rows of a tree, sizes of the programs


_TILES = {
    64: ((128, 64, 8, 4),),
    16: ((64, 64, 4, 3), (64, 32, 4, 4, 49), (64, 32, 4, 4, 66), (64, 32, 4, 5), (64, 32, 8, 4)),
    8: ((32, 64, 4, 3), (32, 32, 4, 4, 66)),
    1: ((16, 64, 4, 3), (16, 32, 4, 4, 49), (16, 32, 4, 4, 66), (16, 32, 4, 6), (16, 32, 2, 4, 66), (16, 16, 4, 6)),
}
"""Tiles tried, by the rows of a tree; a fifth number is the splits."""
VARIANTS: tuple[Case, ...] = (
    *((rows, AttentionSizes()) for rows in _TILES),
    *((rows, AttentionSizes(tile[:4], *tile[4:])) for rows, tiles in _TILES.items() for tile in tiles),
)


def sweep(config: ModelConfig, lengths: tuple[int, ...], dtype: Any, bandwidth: float) -> Iterator[dict[str, Any]]:
    """A row for each variant's error at a length that no tile divides, then one for each of its times."""
    heads, dim = config.num_kv_heads, config.head_dim
    layers = 1 if jax.default_backend() == "cpu" else LAYERS
    shape = (layers, 1, heads, -(-(max(lengths) + RAGGED) // 128) * 128, dim)
    read = 2 * heads * dim * jnp.dtype(dtype).itemsize
    ragged = max(lengths) + RAGGED
    keys, values = (_poisoned(shape, dtype, ragged, jnp.uint32(seed)) for seed in (1, 2))
    asked = {rows: _asked(config, rows, dtype) for rows in dict.fromkeys(rows for rows, _ in VARIANTS)}
    with ThreadPoolExecutor(WORKERS) as workers:
        making = {}
        for variant in VARIANTS:
            lowered = lowered_variant(variant, heads, asked[variant[0]], keys, values)
            making[variant] = workers.submit(lowered.compile, COMPILER_OPTIONS.get(jax.default_backend(), {}))
        expected = {rows: _expected(heads, queries, keys, values, ragged) for rows, queries in asked.items()}
        for variant, made in making.items():
            rows, sizes = variant
            about = {"kernel": "tree_attention", "variant": str(sizes), "rows": rows}
            try:
                program = functools.partial(made.result(), asked[rows], keys, values)
                found = np.asarray(program(jnp.int32(ragged), jnp.int32(0))[0].astype(jnp.float32), np.float64)
            except Exception as error:  # of one tile, such as one that needs too much shared memory
                yield about | {"refused": f"{type(error).__name__}: {error}"[:300]}
                continue
            wanted = expected[rows]
            off = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            yield about | {"length": ragged, "relative_error": off, "good": bool(off <= BOUND)}
            for length in lengths:
                run = functools.partial(program, jnp.int32(length), jnp.int32(TURNS))
                seconds = seconds_of(run, repeats=3) / (TURNS * layers + 1)
                operations = 4 * rows * config.num_heads * dim * length
                yield about | {
                    "length": length,
                    "microseconds": 1e6 * seconds,
                    "of_copy_bandwidth": read * length / seconds / bandwidth,
                    "operations_a_second": operations / seconds,
                }


def lowered_variant(variant: Case, heads: int, queries: Any, keys: Any, values: Any) -> jax.stages.Lowered:
    """The program that calls a variant once, and then in turns for layer after layer."""
    one, layers = tree_call(heads), keys.shape[0]

    def many(
        queries: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array, turns: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def turn(_: jax.Array, queries: jax.Array) -> jax.Array:
            for layer in range(layers):
                queries = queries + one(queries, keys, values, layer, length)
            return queries

        return one(queries, keys, values, layers - 1, length), jax.lax.fori_loop(0, turns, turn, queries)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    with variant[1].applied():
        return jax.jit(many).lower(queries, keys, values, number, number)


def _asked(config: ModelConfig, rows: int, dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(4), (1, rows, config.num_heads, config.head_dim), dtype)


def _expected(heads: int, queries: jax.Array, keys: jax.Array, values: jax.Array, length: int) -> np.ndarray:
    """The definition in float64, on the device."""
    with jax.enable_x64(True), compiling_for("reference"):
        wide = [x.astype(jnp.float64) for x in (queries, keys[-1:], values[-1:])]
        one = tree_call(heads, reference.tree_attention)
        return np.asarray(jax.jit(lambda q, k, v: one(q, k, v, 0, jnp.int32(length)))(*wide))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _poisoned(shape: tuple[int, ...], dtype: Any, live: int, seed: jax.Array) -> jax.Array:
    """Normal numbers, a layer at a time, and NaN in the slots from `live` on."""
    keys = jax.random.split(jax.random.key(seed), shape[0])
    there = (jnp.arange(shape[3], dtype=jnp.int32) < live)[None, None, :, None]
    nan = jnp.asarray(jnp.nan, dtype)
    return jax.lax.map(lambda key: jnp.where(there, jax.random.normal(key, shape[1:], dtype), nan), keys)
