"""Tree attention with other tiles than decoding's, on this machine's device: their times and errors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import reference
from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
from tokenswift_jax.hardware.clock import seconds_of
from tokenswift_jax.hardware.kernel_speed import tree_call
from tokenswift_jax.hardware.variants import changed
from tokenswift_jax.models.config import ModelConfig

LAYERS = 8  # after 16,384 tokens of Llama-3.1-8B 537 MB: no second-level cache holds them
TURNS = 4
RAGGED = 13  # slots that the check sees past the longest length; those after them hold NaN
BOUND = 2**-7  # half an eps of bfloat16 for the weights, and for the result
WORKERS = 8


@dataclass(frozen=True)
class Variant:
    """A way to compute the attention of so many rows.

    Attributes:
      rows: of a tree.
      tile: rows, columns, warps and stages of a program; None: decoding's own.
      splits: of the length; None: decoding's own rule.
      tall: whether tokamax' kernel serves the rows that it can.
    """

    rows: int
    tile: tuple[int, int, int, int] | None = None
    splits: int | None = None
    tall: bool = False

    def __str__(self) -> str:
        if self.tall:
            return "tokamax"
        tile = "present" if self.tile is None else "x".join(map(str, self.tile))
        return tile if self.splits is None else f"{tile}, {self.splits} splits"


_TILES = {
    64: ((128, 64, 8, 2), (128, 64, 8, 3, 33), (128, 32, 8, 4)),
    16: ((64, 64, 4, 2), (64, 64, 4, 3, 66), (64, 32, 4, 4)),
    1: ((16, 64, 4, 3, 66), (16, 64, 4, 3, 98), (16, 32, 4, 4), (16, 64, 2, 3, 98)),
}
"""Tiles tried, by rows; a fifth number is the splits."""
VARIANTS = (
    *(Variant(rows) for rows in _TILES),
    *(Variant(rows, tile[:4], *tile[4:]) for rows, tiles in _TILES.items() for tile in tiles),
    Variant(64, tall=True),
)


def sweep(config: ModelConfig, lengths: tuple[int, ...], dtype: Any, bandwidth: float) -> Iterator[dict[str, Any]]:
    """A row for each variant's error at a length that no tile divides, then one for each of its times."""
    heads, dim = config.num_kv_heads, config.head_dim
    layers = 1 if jax.default_backend() == "cpu" else LAYERS
    shape = (layers, 1, heads, -(-(max(lengths) + RAGGED) // 128) * 128, dim)
    read = 2 * heads * dim * jnp.dtype(dtype).itemsize
    ragged = max(lengths) + RAGGED
    keys, values = (_poisoned(shape, dtype, ragged, jnp.uint32(seed)) for seed in (1, 2))
    asked = {rows: _asked(config, rows, dtype) for rows in sorted({variant.rows for variant in VARIANTS})}
    with ThreadPoolExecutor(WORKERS) as workers:
        making = {}
        for variant in VARIANTS:
            lowered = lowered_variant(variant, heads, asked[variant.rows], keys, values)
            making[variant] = workers.submit(lowered.compile, COMPILER_OPTIONS.get(jax.default_backend(), {}))
        expected = {rows: _expected(heads, queries, keys, values, ragged) for rows, queries in asked.items()}
        for variant, made in making.items():
            about = {"kernel": "tree_attention", "variant": str(variant), "rows": variant.rows}
            try:
                program = functools.partial(made.result(), asked[variant.rows], keys, values)
                found = np.asarray(program(jnp.int32(ragged), jnp.int32(0))[0].astype(jnp.float32), np.float64)
            except Exception as error:  # of one tile, such as one that needs too much shared memory
                yield about | {"refused": f"{type(error).__name__}: {error}"[:300]}
                continue
            wanted = expected[variant.rows]
            off = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            yield about | {"length": ragged, "relative_error": off, "good": bool(off <= BOUND)}
            for length in lengths:
                run = functools.partial(program, jnp.int32(length), jnp.int32(TURNS))
                seconds = seconds_of(run, repeats=3) / (TURNS * layers + 1)
                operations = 4 * variant.rows * config.num_heads * dim * length
                yield about | {
                    "length": length,
                    "microseconds": 1e6 * seconds,
                    "of_copy_bandwidth": read * length / seconds / bandwidth,
                    "operations_a_second": operations / seconds,
                }


def lowered_variant(variant: Variant, heads: int, queries: Any, keys: Any, values: Any) -> jax.stages.Lowered:
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
    with _as_asked(variant):
        return jax.jit(many).lower(queries, keys, values, number, number)


def _as_asked(variant: Variant) -> ExitStack:
    from pallas_kernels.tree_attention import gpu

    stack = ExitStack()
    stack.enter_context(changed(gpu, "TALL", variant.tall))
    if variant.tile is not None:
        tile = gpu.Tile(*variant.tile)
        stack.enter_context(changed(gpu, "tile_for", lambda *_, **__: tile))
    if variant.splits is not None:
        stack.enter_context(changed(gpu, "splits_for", lambda *_: variant.splits))
    return stack


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
