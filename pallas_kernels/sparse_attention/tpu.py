"""Sparse attention for TPUs, by Pallas' Mosaic backend.

Each sequence has one program. It walks the named blocks of all KV heads in turn, several blocks a step, and fetches the
blocks of the next step in place from the cache while it computes this step. The program does not fetch entries that
name no live slot, and it skips the steps at a table's end that have only such entries.

The smallest piece of a cache that the kernel can fetch is a tile: 8, 16 or 32 slots, or 128 where head_dim does not
fill the 128 lanes (XLA then stores the slots along the lanes, and the kernel reads the transposed view [head_dim,
slots]). Where a tile is larger than a block, the kernel fetches the rest of the tile too and masks it.

Limits, each a ValueError: bfloat16 or float32 queries (Mosaic multiplies no float16); head_dim a multiple of 8; a
capacity that is a multiple of the tile.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.implementation import interpret
from pallas_kernels.sparse_attention.reference import named_slots
from pallas_kernels.sparse_attention.tpu_kernel import Problem, attend

LANES = 128
# Slots of a step: enough bytes to hide the fixed cost of a step, few enough for the scores of many rows.
COLUMNS = 512


def sparse_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    *,
    layer: int | jax.Array,
    blocks: jax.Array,
    block_size: int,
    lengths: jax.Array,
    tree_mask: jax.Array,
    positions: jax.Array,
    window: int | None,
    scale: float,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    return_lse: bool = False,
) -> Any:
    """`reference.sparse_attention` by the TPU kernel; raises ValueError beyond the limits above."""
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    group = query_heads // kv_heads
    slots_minor = head_dim % LANES != 0
    tile = max(block_size, LANES if slots_minor else 32 // keys.dtype.itemsize)
    _check(queries, capacity, tile)

    # The table is padded to whole steps. Without the padding, the kernel needs a bound for the tiles of each step.
    tiles = max(COLUMNS // tile, 1)
    columns = tiles * tile
    blocks = _padded(blocks, 2, -blocks.shape[2] % tiles, -1)
    steps = blocks.shape[2] // tiles
    live = (blocks >= 0) & (blocks * block_size < lengths[:, None, None])
    starts = jnp.where(live, blocks * block_size // tile * tile, -1)
    slots = _tile_slots(blocks, block_size, tile, lengths)
    whole = (slots >= 0).reshape(batch, kv_heads, steps, columns).all(axis=-1)
    taken = jnp.where(live, jnp.arange(1, live.shape[2] + 1, dtype=jnp.int32)[None, None, :], 0).max(axis=2)
    taken = jnp.maximum(pl.cdiv(taken, tiles), 1)  # the kernel folds in the rows' own block in a head's last step
    scalars = (
        jnp.asarray(layer, jnp.int32).reshape(1),
        lengths,
        starts.reshape(-1),
        whole.astype(jnp.int32).reshape(-1),
        taken.reshape(-1),
        taken.sum(axis=1),
        blocks.reshape(-1),
    )

    more, more_own = -(group * rows) % 16, -rows % 16  # padding to whole registers
    grouped = queries.reshape(batch, rows, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = _padded(grouped.reshape(batch, kv_heads, group * rows, head_dim), 2, more)
    mask = _padded(jnp.tile(tree_mask, (1, group, 1)), 1, more)
    of_sequence = partial(_whole_rows, batch)
    given: dict[str, tuple[jax.Array, Any]] = {
        "queries": of_sequence(grouped),
        "keys": (keys.swapaxes(3, 4) if slots_minor else keys, pl.BlockSpec(memory_space=pl.ANY)),
        "values": (values.swapaxes(3, 4) if slots_minor else values, pl.BlockSpec(memory_space=pl.ANY)),
        "own_keys": of_sequence(_padded(own_keys.swapaxes(1, 2), 2, more_own)),
        "own_values": of_sequence(_padded(own_values.swapaxes(1, 2), 2, more_own)),
        "mask": of_sequence(_padded(mask, 2, more_own).astype(jnp.int8)),
        "slots": of_sequence(slots),
    }
    if window is not None:
        oldest = positions - window + 1
        given["oldest"] = of_sequence(_padded(jnp.tile(oldest, (1, group)), 1, more)[:, :, None])
        given["own_positions"] = of_sequence(_padded(positions, 1, more_own)[:, None, :])
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if scales is not None:
            given[name] = of_sequence(_gathered(scales, layer, slots))

    problem = Problem(
        heads=kv_heads,
        tiles=tiles,
        tile=tile,
        block=block_size,
        steps=steps,
        scale=scale * math.log2(math.e),
        window=window is not None,
        slots_minor=slots_minor,
    )
    buffer = (2, head_dim, columns) if slots_minor else (2, columns, head_dim)
    padded_rows = grouped.shape[2]
    scored = batch * query_heads * rows * (slots.shape[2] + rows)
    results, result_specs = [jax.ShapeDtypeStruct(grouped.shape, queries.dtype)], [of_sequence(grouped)[1]]
    if return_lse:
        # The log-sum-exp is repeated along the lanes, because the last dimension of a block fills them anyway.
        results.append(jax.ShapeDtypeStruct((batch, kv_heads, padded_rows, LANES), jnp.float32))
        result_specs.append(pl.BlockSpec((None, kv_heads, padded_rows, LANES), lambda b, *_: (b, 0, 0, 0)))
    mixed, *lse = pl.pallas_call(
        partial(attend, problem, tuple(given)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch,),
            in_specs=[spec for _, spec in given.values()],
            out_specs=result_specs,
            scratch_shapes=[
                pltpu.VMEM(buffer, keys.dtype),
                pltpu.VMEM(buffer, values.dtype),
                pltpu.SemaphoreType.DMA((2, 2)),
                pltpu.VMEM((padded_rows, LANES), jnp.float32),
                pltpu.VMEM((padded_rows, LANES), jnp.float32),
                pltpu.VMEM((padded_rows, head_dim), jnp.float32),
            ],
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=64 * 2**20),
        interpret=interpret(),
        name="sparse_attention",
        cost_estimate=pl.CostEstimate(
            flops=4 * scored * head_dim,
            transcendentals=scored,
            bytes_accessed=2 * slots.size * head_dim * keys.dtype.itemsize + 2 * queries.nbytes,
        ),
    )(*scalars, *(array for array, _ in given.values()))
    mixed = mixed[:, :, : group * rows].reshape(batch, kv_heads, group, rows, head_dim)
    mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)
    if not return_lse:
        return mixed
    each = lse[0][:, :, : group * rows, 0].reshape(batch, kv_heads, group, rows)
    return mixed, each.transpose(0, 3, 1, 2).reshape(batch, rows, query_heads)


def _check(queries: jax.Array, capacity: int, tile: int) -> None:
    if queries.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"queries are {queries.dtype}; the TPU kernel takes bfloat16 and float32")
    if queries.shape[3] % 8:
        raise ValueError(f"head_dim is {queries.shape[3]}; the TPU kernel takes multiples of 8")
    if capacity % tile:
        raise ValueError(f"a capacity of {capacity} slots is no multiple of {tile}, the least that can be fetched")


def _tile_slots(blocks: jax.Array, block_size: int, tile: int, lengths: jax.Array) -> jax.Array:
    """The slots of each entry's tile, int32 [batch, kv_heads, table * tile]; -1 for slots outside the entry's block,
    slots that are not live, and entries that name no block."""
    if tile == block_size:
        return named_slots(blocks, block_size, lengths)
    of_tile = named_slots(blocks * block_size // tile, tile, lengths).reshape(*blocks.shape, tile)
    there = (of_tile // block_size == blocks[..., None]) & (blocks >= 0)[..., None]
    return jnp.where(there, of_tile, -1).reshape(*blocks.shape[:2], -1)


def _gathered(scales: jax.Array, layer: int | jax.Array, slots: jax.Array) -> jax.Array:
    """The scales of the slots, float32 in the shape of `slots`; 0 for -1."""
    batch, kv_heads, _ = slots.shape
    row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    head = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    taken = scales[jnp.asarray(layer, jnp.int32), row, head, jnp.maximum(slots, 0)]
    return jnp.where(slots >= 0, taken.astype(jnp.float32), 0.0)


def _whole_rows(batch: int, array: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    """An array [batch, ...] and the spec that gives each program the part of its sequence."""
    assert array.shape[0] == batch
    rest = array.shape[1:]
    return array, pl.BlockSpec((None, *rest), lambda b, *_: (b, *[0] * len(rest)))


def _padded(x: jax.Array, axis: int, more: int, value: int = 0) -> jax.Array:
    pads = [(0, more if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, pads, constant_values=value) if more else x
