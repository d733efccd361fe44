"""How fast kernels read a cache of a model's shape on this machine's device, by length."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.cache_scores import top_blocks
from pallas_kernels.prefill_attention import prefill_attention, reference, served_by
from pallas_kernels.sparse_attention import sparse_attention
from pallas_kernels.tree_attention import tree_attention
from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.hardware.clock import seconds_of
from tokenswift_jax.models.config import ModelConfig

LAYERS = 16  # after 4,096 tokens of Llama-3.1-8B 268 MB: no second-level cache holds them
PASSES = 4
BLOCK = 64
TABLE = 64  # blocks that the draft reads: 4,096 slots


def by_length(config: ModelConfig, lengths: tuple[int, ...], dtype: Any, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Share of the copy bandwidth at which each kernel reads its necessary bytes of a layer's cache."""
    heads, dim, capacity = config.num_kv_heads, config.head_dim, _whole_blocks(max(lengths)) + ACCELERATOR_ROWS
    size = heads * dim * jnp.dtype(dtype).itemsize  # of a position's keys
    shape = (LAYERS, 1, heads, capacity, dim)
    keys, values = (jax.random.normal(jax.random.key(seed), shape, dtype) for seed in (1, 2))

    def asked(rows: int) -> jax.Array:
        return jax.random.normal(jax.random.key(4), (1, rows, config.num_heads, dim), dtype)

    def row(kernel: str, rows: int, length: int, read: int, one: Callable[..., jax.Array]) -> dict[str, Any]:
        queries = asked(rows)
        seconds = _seconds_of_a_call(one, queries, keys, values, length)
        return {
            "kernel": kernel,
            "rows": rows,
            "length": length,
            "microseconds": 1e6 * seconds,
            "bytes": read,
            "of_copy_bandwidth": read / seconds / bandwidth,
        }

    for rows, length in itertools.product((1, 16, 64), lengths):
        yield row("tree_attention", rows, length, 2 * size * length, tree_call(heads))
    for rows, length in itertools.product((1, 16), lengths):
        table = min(TABLE, length // BLOCK)
        yield row("sparse_attention", rows, length, 2 * size * table * BLOCK, _sparse(heads, table))
    for length in lengths:
        table = min(TABLE, length // BLOCK)
        yield row("cache_scores", 1, length, size * length, _selection(table))
    # Prefill is bound by arithmetic; where a library's kernel serves, ours is timed as well.
    by, library = served_by(asked(ACCELERATOR_ROWS), keys)
    contenders = {by: prefill_attention} | ({"tree_attention": reference.prefill_attention} if library else {})
    for (name, attend), length in itertools.product(contenders.items(), lengths):
        read = 2 * size * (length + ACCELERATOR_ROWS)
        timed = row("prefill_attention", ACCELERATOR_ROWS, length, read, _prefill(heads, attend))
        columns = length + (ACCELERATOR_ROWS + 1) / 2
        operations = 4 * ACCELERATOR_ROWS * columns * config.num_heads * dim
        yield timed | {"by": name, "operations_a_second": operations / timed["microseconds"] * 1e6}


def _whole_blocks(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _seconds_of_a_call(
    one: Callable[..., jax.Array], queries: jax.Array, keys: jax.Array, values: jax.Array, length: int
) -> float:
    """Seconds of `one`, called for layer after layer; each call needs the one before it."""
    many = _repeated(one)
    return seconds_of(lambda: many(queries, keys, values, jnp.int32(length))) / PASSES / LAYERS


@functools.cache
def _repeated(one: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Cached, as are the functions that make `one`. Without this, JAX compiles 16 layers again for every length."""

    @jax.jit
    def many(queries: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array) -> jax.Array:
        def turn(_: jax.Array, queries: jax.Array) -> jax.Array:
            for layer in range(LAYERS):
                queries = queries + one(queries, keys, values, layer, length)
            return queries

        return jax.lax.fori_loop(0, PASSES, turn, queries)

    return many


def _chain(queries: jax.Array, heads: int, layer: int, length: jax.Array) -> dict[str, Any]:
    """The arguments of both attentions for rows that follow `length` tokens as a chain."""
    rows, own = queries.shape[1], queries[:, :, :heads]
    return {
        "own_keys": own,
        "own_values": own,
        "layer": layer,
        "lengths": length[None],
        "tree_mask": jnp.tril(jnp.ones((1, rows, rows), bool)),
        "positions": length + jnp.arange(rows, dtype=jnp.int32)[None],
        "window": None,
    }


@functools.cache
def tree_call(heads: int, attend: Callable[..., jax.Array] | None = None) -> Callable[..., jax.Array]:
    """`attend`, None for `tree_attention`, as a function of queries, keys, values, layer and length: for rows that
    follow each other."""

    def call(queries: jax.Array, keys: jax.Array, values: jax.Array, layer: int, length: jax.Array) -> jax.Array:
        scale = queries.shape[-1] ** -0.5
        chain = _chain(queries, heads, layer, length)
        return (attend or tree_attention)(queries, keys, values, **chain, scale=scale, key_positions=None)

    return call


@functools.cache
def _prefill(heads: int, attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def call(queries: jax.Array, keys: jax.Array, values: jax.Array, layer: int, length: jax.Array) -> jax.Array:
        chain = _chain(queries, heads, layer, length)
        del chain["tree_mask"]
        return attend(queries, keys, values, **chain, key_positions=None)

    return call


@functools.cache
def _sparse(heads: int, table: int) -> Callable[..., jax.Array]:
    def call(queries: jax.Array, keys: jax.Array, values: jax.Array, layer: int, length: jax.Array) -> jax.Array:
        # Evenly spread over the text, in another order for every head.
        order = (jnp.arange(table, dtype=jnp.int32)[None] * 29 + jnp.arange(heads, dtype=jnp.int32)[:, None]) % table
        blocks = (order * (length // BLOCK // table))[None]
        chain = _chain(queries, heads, layer, length)
        return sparse_attention(queries, keys, values, **chain, blocks=blocks, block_size=BLOCK)

    return call


@functools.cache
def _selection(count: int) -> Callable[..., jax.Array]:
    def call(queries: jax.Array, keys: jax.Array, values: jax.Array, layer: int, length: jax.Array) -> jax.Array:
        del values
        begins = jnp.zeros((1,), jnp.int32)
        options: dict[str, Any] = {"begins": begins, "ends": length[None], "count": count, "block_size": BLOCK}
        best = top_blocks(queries[:, 0], keys, layer=layer, **options)
        return 1e-3 * best[:, :1, :1, None].astype(queries.dtype)

    return call
