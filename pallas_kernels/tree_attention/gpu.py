"""Tree attention for NVIDIA GPUs (compute capability 8.0 and above), by Pallas' Triton backend.

The kernel tiles the rows of a KV head's query group and splits the walk of each tile over the live prefix by length, so
that even one row of one sequence occupies every multiprocessor. The last split also folds in the rows' own block, and a
second kernel merges the splits by their log-sum-exp. Both kernels read and write the caller's layouts, so XLA
transposes and copies nothing around the two launches.

Limits, each a ValueError: bfloat16, float16 or float32 queries; head_dim a multiple of 16 up to 256; a cache with one
byte a number below 2 GiB or above 4 GiB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import gpu, interpret
from pallas_kernels.tree_attention.gpu_kernels import Problem, attend_split, merge_splits
from pallas_kernels.tree_attention.own_blocks import own_blocks
from pallas_kernels.tree_attention.pieces import head_pieces

MOST_SPLITS = 128


@dataclass(frozen=True)
class Tile:
    """The sizes of one program: rows, columns of the cache a step, warps, and stages of the load pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


def tile_for(rows: int, pieces: int, *, head_dim: int, wide: bool, hopper: bool) -> Tile:
    """The tile for `rows` rows a KV head, query group included.

    It is the largest tile that ptxas compiles without spills for sm_80 and sm_90a, at a head_dim up to 128 and any
    dtype (except 60 bytes for a sliding window over one-byte numbers on sm_80). Larger tiles spill: 128 rows 800 bytes
    on sm_80, 256 rows 400 bytes on sm_90a, and 32 columns of float32 240 bytes on both. On an H200, a third stage made
    128 rows 26% to 31% faster; 32 columns in four stages made 64 rows 3% to 9% faster than 64 columns in three, and 32
    rows 4% to 6% slower (16,384 and 126,976 positions, head_dim 128, bfloat16;
    benchmarks/2026-11-27-device-h200-contact-fourth.json and -sixth.json).

    Args:
      rows: number of rows to tile.
      pieces: pieces of the head's numbers (`head_pieces`); each has its own operands in registers.
      head_dim: above 128, three stages of a large tile do not fit the shared memory of 228 KB.
      wide: queries are float32, which the GPU multiplies without tensor cores.
      hopper: compute capability 9 and above, where tensor cores read their operands from shared memory.
    """
    if wide:
        return Tile(16, 16, 8, 2)
    if rows <= 32:
        # Two of these programs share a multiprocessor; with three stages they fit only a shared memory of 228 KB.
        return Tile(16 if rows <= 16 else 32, 64, 4, 3 if hopper else 2)
    if hopper and head_dim <= 128:
        return Tile(64, 32, 4, 4) if rows <= 64 else Tile(128, 64, 8, 3)
    if hopper:
        return Tile(64, 64, 4, 2) if rows <= 64 else Tile(128, 64, 8, 2)
    return Tile(64, 64, 8, 2) if pieces == 1 else Tile(64, 32, 4, 3)


def splits_for(programs: int, wanted: int, blocks: int) -> int:
    """The number of parts into which the kernel splits the length, so that `programs` tiles become about `wanted`
    programs.

    It is static, hence it counts the blocks of the capacity; where the length in use has fewer blocks, some splits have
    no work.
    """
    return max(1, min(wanted // programs, blocks, MOST_SPLITS))


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
    blocks: jax.Array | None = None,
    block_size: int | None = None,
) -> Any:
    """`reference.tree_attention`; with `blocks` of `block_size` slots, `sparse_attention.reference.sparse_attention`.

    Raises:
      ValueError: beyond the limits above.
    """
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    _check(queries, keys)
    group = query_heads // kv_heads
    target = gpu()
    pieces = head_pieces(head_dim)
    tile = tile_for(
        group * rows,
        len(pieces),
        head_dim=head_dim,
        wide=queries.dtype == jnp.float32,
        hopper=target.compute_capability >= (9, 0),
    )
    tiles = pl.cdiv(group * rows, tile.rows)
    # Two programs of four warps fit the registers of a multiprocessor; the loads of one overlap the products of the
    # other.
    wanted = target.multiprocessors * (8 // tile.warps)
    table = 0 if blocks is None else blocks.shape[2]
    walked = capacity if block_size is None else table * block_size
    splits = splits_for(batch * kv_heads * tiles, wanted, pl.cdiv(walked, tile.columns))
    float8_bits = keys.dtype == jnp.float8_e4m3fn and target.compute_capability < (8, 9)
    if float8_bits:
        keys, values = (lax.bitcast_convert_type(x, jnp.uint8) for x in (keys, values))
    # Half the columns of a prefix step, because the masks of own rows take more registers.
    own_columns = min(max(tile.columns // 2, 16), max(16, pl.next_power_of_2(rows)))
    problem = Problem(
        rows=rows,
        group=group,
        kv_heads=kv_heads,
        capacity=capacity,
        pieces=pieces,
        scale=scale * math.log2(math.e),
        splits=splits,
        tile_rows=tile.rows,
        columns=tile.columns,
        own_columns=own_columns,
        window=window,
        float8_bits=float8_bits,
        block_size=block_size,
        table=table,
        return_lse=return_lse,
    )
    begins = jnp.zeros((batch,), jnp.int32)
    if window is not None and key_positions is None and blocks is None:
        begins = jnp.maximum(positions.min(axis=1) - window + 1, 0)
    given: dict[str, Any] = {
        "layer": jnp.asarray(layer, jnp.int32).reshape(1),
        "lengths": lengths,
        "begins": begins,
        "queries": queries,
        "keys": keys,
        "values": values,
        "own_keys": own_keys,
        "own_values": own_values,
        "mask": tree_mask,
        "own_blocks": own_blocks(tree_mask, group, tile.rows, own_columns),
        "positions": None if window is None else positions,
        "key_positions": None if window is None else key_positions,
        "key_scales": key_scales,
        "value_scales": value_scales,
        "blocks": blocks,
    }
    names = tuple(name for name, array in given.items() if array is not None)
    results = [jax.ShapeDtypeStruct(queries.shape, queries.dtype)]
    if return_lse:
        results.append(jax.ShapeDtypeStruct((batch, rows, query_heads), jnp.float32))
    each = (batch, kv_heads, group * rows, splits)
    parts = [
        jax.ShapeDtypeStruct((*each, head_dim), jnp.float32),
        jax.ShapeDtypeStruct(each, jnp.float32),
        jax.ShapeDtypeStruct(each, jnp.float32),
    ]
    live = batch * kv_heads * walked * head_dim
    scored = query_heads * rows * batch * (walked + rows)
    call = pl.pallas_call(
        partial(attend_split, problem, names),
        grid=(tiles, splits, batch * kv_heads),
        out_shape=results if splits == 1 else parts,
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret(),
        name="tree_attention" if blocks is None else "sparse_attention",
        cost_estimate=pl.CostEstimate(
            flops=4 * scored * head_dim,
            transcendentals=scored,
            bytes_accessed=2 * live * keys.dtype.itemsize + 2 * queries.nbytes,
        ),
    )
    out = call(*(given[name] for name in names))
    if splits == 1:
        return tuple(out) if return_lse else out[0]
    out = pl.pallas_call(
        partial(merge_splits, problem),
        grid=(group * rows, batch * kv_heads),
        out_shape=results,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret(),
        name="tree_attention_merge",
        cost_estimate=pl.CostEstimate(
            flops=3 * parts[0].size, transcendentals=parts[1].size, bytes_accessed=4 * parts[0].size
        ),
    )(*out)
    return tuple(out) if return_lse else out[0]


def _check(queries: jax.Array, keys: jax.Array) -> None:
    if queries.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise ValueError(f"queries are {queries.dtype}; the GPU kernel takes bfloat16, float16 and float32")
    # Pallas computes offsets into arrays of up to 4 GiB in 32 signed bits, which wrap for one-byte numbers above 2 GiB.
    if keys.dtype.itemsize == 1 and 2**31 < keys.size <= 2**32:
        raise ValueError(f"the cache has {keys.size} one-byte numbers; the GPU kernel takes up to 2^31 or above 2^32")
