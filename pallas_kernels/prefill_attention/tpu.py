"""Prefill attention on TPUs by tokamax' splash attention.

Its grid walks a list of blocks that the program builds as it runs, so its cost follows the live slots and not the
capacity. The kernel sees the rows of all KV heads as one sequence of rows, the cache as one sequence of slots
(`flat_cache_view`), and the query group as its heads. Slots past the rows' own must be finite, because the kernel
multiplies them by zero. tokamax' public functions take no such list, so this file calls the kernel directly.

The caller of the kernel scales the queries first, in their own dtype, which rounds them once.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel import (
    SplashAttentionKernel,
    SplashConfig,
)
from tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from pallas_kernels.implementation import interpret
from pallas_kernels.prefill_attention.flat_cache_view import flat_cache_view, kv_ranges, layer_begins

BLOCK, COMPUTED = 1024, 512  # slots that a step fetches, and slots that it multiplies at a time
# The scalar memory, one megabyte, contains five int32 arrays of this length.
MOST_BLOCKS = 2**15
_PARTIAL, _FULL = 1, 2


def most_blocks(keys: jax.Array) -> int:
    """Most entries that the list of blocks can have for a stacked cache: all blocks of one layer."""
    _, batch, kv_heads, capacity, _ = keys.shape
    return batch * kv_heads * (capacity // gcd(capacity, BLOCK))


def several_cores() -> bool:
    """Whether the chip of an attached TPU has more than one core; the grid splits only the query group among cores."""
    return jax.default_backend() == "tpu" and pltpu.get_tpu_info().num_cores > 1


def prefill_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    layer: int | jax.Array,
    lengths: jax.Array,
    window: int | None,
    scale: float,
) -> jax.Array:
    """`reference.prefill_attention` for the calls that `prefill_attention.served_by` accepts."""
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    group, block = query_heads // kv_heads, gcd(capacity, BLOCK)
    scaled = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    heads = scaled.reshape(batch, rows, kv_heads, group, head_dim).transpose(3, 0, 2, 1, 4)
    heads = heads.reshape(group, batch * kv_heads * rows, head_dim)
    walked = listed(*kv_ranges(keys, lengths, rows, window), block, capacity // block, layer_begins(keys, layer))
    config = SplashConfig(
        block_q=rows,
        block_kv=block,
        block_kv_compute=min(block, COMPUTED),
        use_base2_exp=False,
        fwd_cost_estimate=_cost(queries, keys),
        interpret=interpret(),
    )

    def seen(last: jax.Array, slot: jax.Array) -> jax.Array:
        near = last >= slot
        return near if window is None else near & (last - slot < window)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        attend = SplashAttentionKernel(
            walked,
            None,
            config=config,
            is_mqa=True,
            save_residuals=False,
            mask_value=float(jnp.finfo(jnp.float32).min),
            mask_function=seen,
            fwd_mask_sparsity=1.0,
            dkv_mask_sparsity=1.0,
        )
        mixed: Any = attend(heads, flat_cache_view(keys), flat_cache_view(values))
    mixed = mixed.reshape(group, batch, kv_heads, rows, head_dim).transpose(1, 3, 2, 0, 4)
    return mixed.reshape(batch, rows, query_heads, head_dim)


def _cost(queries: jax.Array, keys: jax.Array) -> pl.CostEstimate:
    """The cost over one layer of a full cache, as `tree_attention` states it; tokamax would count the whole stack."""
    scored = queries.shape[0] * queries.shape[1] * queries.shape[2] * keys.shape[3]
    read = 2 * keys.nbytes // keys.shape[0] + 2 * queries.nbytes
    return pl.CostEstimate(flops=4 * scored * queries.shape[3], transcendentals=scored, bytes_accessed=read)


def listed(begins: jax.Array, ends: jax.Array, block: int, most: int, offset: int | jax.Array) -> MaskInfo:
    """The list of blocks to walk: for each sequence and KV head, the blocks that any of its rows sees.

    Args:
      begins, ends: `flat_cache_view.kv_ranges`.
      block: slots of a block.
      most: blocks in the slots of one head.
      offset: slots before those of the layer, a multiple of `block`.
    """
    first, last = begins.min(axis=2).ravel() // block, (ends.max(axis=2).ravel() - 1) // block
    # A block needs no mask if every row begins at or before it and ends at or after its end.
    full_from = -(begins.max(axis=2).ravel() // -block)
    full_to = ends.min(axis=2).ravel() // block
    counts = last - first + 1
    total = counts.sum()
    size = most * counts.shape[0]
    place = jnp.arange(size, dtype=jnp.int32)
    row = jnp.repeat(jnp.arange(counts.shape[0], dtype=jnp.int32), counts, total_repeat_length=size)
    column = first[row] + place - (jnp.cumsum(counts) - counts)[row]
    full = (column >= full_from[row]) & (column < full_to[row])
    # Entries past the list have another row than its last entry; the kernel recognises the last entry by that change.
    live = place < total
    last_seen: Any = offset + ends.ravel() - 1  # tokamax annotates a NumPy array, but takes a JAX array too
    return MaskInfo(
        mask_next=None,
        active_rows=jnp.where(live, row, jnp.int32(counts.shape[0])),
        active_cols=jnp.where(live, offset // block + column, jnp.int32(0)),
        block_mask=jnp.where(full, jnp.int32(_FULL), jnp.int32(_PARTIAL)),
        num_active_blocks=lax.convert_element_type(total, jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=last_seen,
    )
