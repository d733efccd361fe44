"""Prefill attention on TPUs by splash attention, as tokamax keeps it.

Its grid walks a list of blocks that is made as the program runs, so it costs what is live, whatever the capacity. The
rows of all KV heads are one sequence of rows, the cache one of slots (`one_sequence`), and the query group is the
heads. Slots past the rows' own must be finite: they are multiplied by zero.

Queries are scaled before, in their own dtype, which rounds them once.
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
from pallas_kernels.prefill_attention.one_sequence import layer_begins, one_sequence, spans

BLOCK, COMPUTED = 1024, 512  # slots that a step fetches, and that it multiplies at a time
# Five int32 arrays of the list lie in the scalar memory, of which there is a megabyte.
MOST_BLOCKS = 2**15
_PARTIAL, _FULL = 1, 2


def most_blocks(keys: jax.Array) -> int:
    """Entries of the list of blocks for a stacked cache: those of a layer."""
    _, batch, kv_heads, capacity, _ = keys.shape
    return batch * kv_heads * (capacity // gcd(capacity, BLOCK))


def several_cores() -> bool:
    """Whether an attached TPU's chip has more than one core, among which the grid splits the query group alone."""
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
    """`reference.prefill_attention` of what `prefill_attention.served_by` lets through."""
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    group, block = query_heads // kv_heads, gcd(capacity, BLOCK)
    scaled = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    heads = scaled.reshape(batch, rows, kv_heads, group, head_dim).transpose(3, 0, 2, 1, 4)
    heads = heads.reshape(group, batch * kv_heads * rows, head_dim)
    walked = listed(*spans(keys, lengths, rows, window), block, capacity // block, layer_begins(keys, layer))
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
        mixed: Any = attend(heads, one_sequence(keys), one_sequence(values))
    mixed = mixed.reshape(group, batch, kv_heads, rows, head_dim).transpose(1, 3, 2, 0, 4)
    return mixed.reshape(batch, rows, query_heads, head_dim)


def _cost(queries: jax.Array, keys: jax.Array) -> pl.CostEstimate:
    """Of a full cache's layer, as `tree_attention` gives it; tokamax would name the whole stack."""
    scored = queries.shape[0] * queries.shape[1] * queries.shape[2] * keys.shape[3]
    read = 2 * keys.nbytes // keys.shape[0] + 2 * queries.nbytes
    return pl.CostEstimate(flops=4 * scored * queries.shape[3], transcendentals=scored, bytes_accessed=read)


def listed(begins: jax.Array, ends: jax.Array, block: int, most: int, offset: int | jax.Array) -> MaskInfo:
    """The blocks of `block` slots to walk: for the rows of each sequence and KV head those that any of them sees.

    Args:
      begins, ends: `one_sequence.spans`.
      block: slots of one.
      most: blocks that a head's slots have.
      offset: slots before the layer's; whole blocks.
    """
    first, last = begins.min(axis=2).ravel() // block, (ends.max(axis=2).ravel() - 1) // block
    # A block needs no mask that lies past every row's begin and before every row's end.
    full_from = -(begins.max(axis=2).ravel() // -block)
    full_to = ends.min(axis=2).ravel() // block
    counts = last - first + 1
    total = counts.sum()
    size = most * counts.shape[0]
    place = jnp.arange(size, dtype=jnp.int32)
    row = jnp.repeat(jnp.arange(counts.shape[0], dtype=jnp.int32), counts, total_repeat_length=size)
    column = first[row] + place - (jnp.cumsum(counts) - counts)[row]
    full = (column >= full_from[row]) & (column < full_to[row])
    # Past the list rows differ from its last, which is how the kernel knows that it is the last.
    live = place < total
    last_seen: Any = offset + ends.ravel() - 1  # tokamax' annotation says NumPy; it takes both
    return MaskInfo(
        mask_next=None,
        active_rows=jnp.where(live, row, jnp.int32(counts.shape[0])),
        active_cols=jnp.where(live, offset // block + column, jnp.int32(0)),
        block_mask=jnp.where(full, jnp.int32(_FULL), jnp.int32(_PARTIAL)),
        num_active_blocks=lax.convert_element_type(total, jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=last_seen,
    )
