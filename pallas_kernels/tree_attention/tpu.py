"""Tree attention for TPUs, by Pallas' Mosaic backend.

The program of a (sequence, block of KV heads, row tile) walks the live blocks of the prefix, which the pipeline of the
grid fetches ahead of the arithmetic, and then the rows' own block. The number of steps is an argument, so slots that
are not in use cost neither bytes nor steps.

The kernel reads the cache as [slots, head_dim] where head_dim fills the 128 lanes. For any other head_dim XLA stores
the slots along the lanes; the kernel then takes the transposed view [head_dim, slots], which matches the order in
memory, so XLA makes no copy.

Limits, each a ValueError: bfloat16 or float32 queries (Mosaic multiplies no float16); head_dim a multiple of 8.
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
from pallas_kernels.tree_attention.own_blocks import own_blocks
from pallas_kernels.tree_attention.tpu_kernel import LANES, Problem, attend

# Bytes of keys that a step fetches (it fetches as many of values, and both are double-buffered). The fixed cost of a
# step is a third of a microsecond, in which a v5p moves one megabyte.
STEP_BYTES = 2**20
# Rows times KV heads that one program keeps in VMEM, about 2.5 KB each.
MOST_ROWS = 2048
OWN_COLUMNS = 256


def tree_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    *,
    layer: int | jax.Array,
    lengths: jax.Array,
    tree_mask: jax.Array,
    positions: jax.Array,
    window: int | None,
    scale: float,
    key_positions: jax.Array | None,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    return_lse: bool = False,
) -> Any:
    """`reference.tree_attention` by the TPU kernel; raises ValueError beyond the limits above."""
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    if queries.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"queries are {queries.dtype}; the TPU kernel takes bfloat16 and float32")
    if head_dim % 8:
        raise ValueError(f"head_dim is {head_dim}; the TPU kernel takes multiples of 8")
    group = query_heads // kv_heads
    slots_minor = head_dim % LANES != 0
    # Arrays without a head_dim have the KV heads along the sublanes, and a block takes all sublanes or a multiple of
    # eight.
    per_slot = key_scales is not None or value_scales is not None or (window is not None and key_positions is not None)
    # On a chip with two cores, two blocks of heads give each core one half.
    heads = kv_heads if per_slot or kv_heads % 2 else kv_heads // 2
    tile = _tile_rows(group * rows, heads)
    tiles = pl.cdiv(group * rows, tile)
    columns = _columns(capacity, heads * head_dim * keys.dtype.itemsize, tile)
    own_columns = min(rows, OWN_COLUMNS)
    own_most = pl.cdiv(rows, own_columns)
    own_seen = own_blocks(tree_mask, group, tile, own_columns)
    problem = Problem(
        heads=heads,
        columns=columns,
        scale=scale * math.log2(math.e),
        window=window,
        slots_minor=slots_minor,
    )

    blocks = pl.cdiv(lengths, columns)
    begins = jnp.zeros_like(lengths)
    if window is not None and key_positions is None:
        begins = jnp.minimum(jnp.maximum(positions.min(axis=1) - window + 1, 0) // columns, blocks)
    steps = (blocks - begins).max()
    scalars = (jnp.asarray(layer, jnp.int32).reshape(1), lengths, begins, blocks, steps.reshape(1), own_seen)

    def at_step(b, step, begins_ref, blocks_ref):
        # Past a sequence's last block the index stays, so the pipeline fetches nothing.
        return jnp.maximum(jnp.minimum(begins_ref[b] + step, blocks_ref[b] - 1), 0)

    def cached(b, h, i, j, layer_ref, lengths_ref, begins_ref, blocks_ref, *_):
        block = at_step(b, j, begins_ref, blocks_ref)
        return (layer_ref[0], b, h, 0, block) if slots_minor else (layer_ref[0], b, h, block, 0)

    def cached_scalar(b, h, i, j, layer_ref, lengths_ref, begins_ref, blocks_ref, *_):
        return layer_ref[0], b, h, at_step(b, j, begins_ref, blocks_ref)

    def own_step(b, i, j, refs):
        steps_ref, own_ref = refs[-2:]
        return jnp.maximum(jnp.minimum(j - steps_ref[0], own_ref[b, i] - 1), 0)

    shape = (None, None, heads, head_dim, columns) if slots_minor else (None, None, heads, columns, head_dim)
    cache_spec = pl.BlockSpec(shape, cached)
    scalar_spec = pl.BlockSpec((None, None, heads, columns), cached_scalar)
    row_spec = pl.BlockSpec((None, heads, tile, head_dim), lambda b, h, i, j, *_: (b, h, i, 0))
    own_spec = pl.BlockSpec(
        (None, heads, own_columns, head_dim), lambda b, h, i, j, *refs: (b, h, own_step(b, i, j, refs), 0)
    )
    mask_spec = pl.BlockSpec((None, tile, own_columns), lambda b, h, i, j, *refs: (b, i, own_step(b, i, j, refs)))
    reach_spec = pl.BlockSpec((None, tile, 1), lambda b, h, i, j, *_: (b, i, 0))
    where_spec = pl.BlockSpec((None, 1, own_columns), lambda b, h, i, j, *refs: (b, 0, own_step(b, i, j, refs)))

    more_rows, more_columns = tiles * tile - group * rows, own_most * own_columns - rows
    own = [_padded(x.transpose(0, 2, 1, 3), 2, more_columns) for x in (own_keys, own_values)]
    mask = _padded(jnp.repeat(tree_mask, group, axis=1), 1, more_rows)
    given: dict[str, tuple[Any, pl.BlockSpec]] = {
        "queries": (_padded(_by_head(queries, kv_heads), 2, more_rows), row_spec),
        "keys": (_in_large_memory(keys.swapaxes(3, 4) if slots_minor else keys), cache_spec),
        "values": (_in_large_memory(values.swapaxes(3, 4) if slots_minor else values), cache_spec),
        "own_keys": (own[0], own_spec),
        "own_values": (own[1], own_spec),
        "mask": (_padded(mask, 2, more_columns).astype(jnp.int8), mask_spec),
    }
    if window is not None:
        reach = jnp.repeat(positions, group, axis=1) - window
        given["reach"] = (_padded(reach, 1, more_rows)[:, :, None], reach_spec)
        given["own_positions"] = (_padded(positions, 1, more_columns)[:, None, :], where_spec)
        if key_positions is not None:
            given["key_positions"] = (key_positions, scalar_spec)
    if key_scales is not None:
        given["key_scales"] = (key_scales, scalar_spec)
    if value_scales is not None:
        given["value_scales"] = (value_scales, scalar_spec)
    scored = batch * query_heads * rows * (capacity + rows)
    results = [jax.ShapeDtypeStruct((batch, kv_heads, tiles * tile, head_dim), queries.dtype)]
    result_specs = [row_spec]
    if return_lse:
        # The log-sum-exp is repeated along the lanes, because the last dimension of a block fills them anyway.
        results.append(jax.ShapeDtypeStruct((batch, kv_heads, tiles * tile, LANES), jnp.float32))
        result_specs.append(pl.BlockSpec((None, heads, tile, LANES), lambda b, h, i, j, *_: (b, h, i, 0)))
    mixed, *lse = pl.pallas_call(
        partial(attend, problem, tuple(given)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, kv_heads // heads, tiles, steps + own_most),
            in_specs=[spec for _, spec in given.values()],
            out_specs=result_specs,
            scratch_shapes=[
                pltpu.VMEM((heads, tile, LANES), jnp.float32),
                pltpu.VMEM((heads, tile, LANES), jnp.float32),
                pltpu.VMEM((heads, tile, head_dim), jnp.float32),
            ],
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret(),
        name="tree_attention",
        cost_estimate=pl.CostEstimate(
            flops=4 * scored * head_dim,
            transcendentals=scored,
            bytes_accessed=(keys.nbytes + values.nbytes) // keys.shape[0] + 2 * queries.nbytes,
        ),
    )(*scalars, *(array for array, _ in given.values()))
    mixed = mixed[:, :, : group * rows].reshape(batch, kv_heads, rows, group, head_dim)
    mixed = mixed.transpose(0, 2, 1, 3, 4).reshape(queries.shape)
    if not return_lse:
        return mixed
    each = lse[0][:, :, : group * rows, 0].reshape(batch, kv_heads, rows, group)
    return mixed, each.transpose(0, 2, 1, 3).reshape(batch, rows, query_heads)


def _in_large_memory(cache: jax.Array) -> jax.Array:
    """The cache, which XLA leaves where it is.

    Where a whole cache fits the chip's fast memory, as a draft cache does, XLA would copy it there and back for the
    writes of a few layers (cost: 18% of the bytes of a draft of Qwen2.5-14B on a v5e).
    """
    if interpret():  # interpreters have one memory
        return cache
    return pltpu.with_memory_space_constraint(cache, pltpu.HBM)


def _by_head(queries: jax.Array, kv_heads: int) -> jax.Array:
    """The queries as [batch, kv_heads, rows * group, head_dim], the query group of a row together."""
    batch, rows, query_heads, head_dim = queries.shape
    queries = queries.reshape(batch, rows, kv_heads, query_heads // kv_heads, head_dim).transpose(0, 2, 1, 3, 4)
    return queries.reshape(batch, kv_heads, -1, head_dim)


def _padded(x: jax.Array, axis: int, more: int) -> jax.Array:
    return jnp.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)]) if more else x


def _tile_rows(rows: int, heads: int) -> int:
    """Rows of a program: all rows, padded to whole registers, up to the limit of VMEM."""
    unit = 16 if rows <= 16 else 32
    most = max(MOST_ROWS // heads // 32 * 32, 32)
    return min(pl.cdiv(rows, unit) * unit, most, 256)


def _columns(capacity: int, slot_bytes: int, tile: int) -> int:
    """Slots of a step: STEP_BYTES of keys, a power of two and at least the 128 lanes, fewer with many rows."""
    fitting = 1 << max(STEP_BYTES // slot_bytes, LANES).bit_length() - 1
    columns = min(fitting, 2048, max(2**18 // tile, LANES))
    return capacity if capacity <= columns else columns
