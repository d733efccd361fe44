"""The selection pass for NVIDIA GPUs (compute capability 8.0 and above), by Pallas' Triton backend.

The grid has one program for each (block of slots, sequence and KV head); a program without an eligible slot ends at
once. One query is too little work for tensor cores, so the kernel multiplies and adds in float32; the loads of the
keys take longer and hide this arithmetic.

Limits, each a ValueError: head_dim up to 256; a cache with one byte a number below 2 GiB or above 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.cache_scores.reference import summed_group
from pallas_kernels.implementation import gpu, interpret
from pallas_kernels.tree_attention.gpu_kernels import stored_numbers

COLUMNS = 64  # slots of a program


def cache_scores(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int | jax.Array,
    begins: jax.Array,
    ends: jax.Array,
    key_scales: jax.Array | None,
) -> jax.Array:
    """Scores float32 [batch, kv_heads, capacity] of the slots begins .. ends-1; the other scores may be anything.

    The arguments are those of `pallas_kernels.cache_scores.top_positions`. Raises ValueError beyond the limits above.
    """
    batch, _, head_dim = query.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    if head_dim > 256:
        raise ValueError(f"head_dim is {head_dim}; the GPU kernel takes up to 256")
    # Pallas computes offsets into arrays of up to 4 GiB in 32 signed bits, which wrap for one-byte numbers above 2 GiB.
    if keys.dtype.itemsize == 1 and 2**31 < keys.size <= 2**32:
        raise ValueError(f"the cache has {keys.size} one-byte numbers; the GPU kernel takes up to 2^31 or above 2^32")
    float8_bits = keys.dtype == jnp.float8_e4m3fn and gpu().compute_capability < (8, 9)
    if float8_bits:
        keys = lax.bitcast_convert_type(keys, jnp.uint8)
    given = [jnp.asarray(layer, jnp.int32).reshape(1), begins, ends, summed_group(query, kv_heads), keys]
    return pl.pallas_call(
        partial(_score_block, kv_heads, capacity, head_dim, float8_bits),
        grid=(pl.cdiv(capacity, COLUMNS), batch * kv_heads),
        out_shape=jax.ShapeDtypeStruct((batch, kv_heads, capacity), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret(),
        name="cache_scores",
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * kv_heads * capacity * head_dim,
            transcendentals=0,
            bytes_accessed=keys.nbytes // keys.shape[0] + 4 * batch * kv_heads * capacity,
        ),
    )(*given, *([] if key_scales is None else [key_scales]))


def _score_block(kv_heads: int, capacity: int, head_dim: int, float8_bits: bool, *refs: Any) -> None:
    """Program (block of slots, batch * kv_heads): writes the block's scores if one of its slots is eligible."""
    layer_ref, begins_ref, ends_ref, summed_ref, keys_ref = refs[:5]
    scales_ref, out_ref = refs[5] if len(refs) == 7 else None, refs[-1]
    batch, head = pl.program_id(1) // kv_heads, pl.program_id(1) % kv_heads
    start = pl.program_id(0) * COLUMNS

    @pl.when((start < ends_ref[batch]) & (start + COLUMNS > begins_ref[batch]))
    def _():
        layer = layer_ref[0]
        # Array sizes in Triton are powers of two. The kernel neither reads nor counts the numbers past head_dim.
        numbers = jnp.arange(pl.next_power_of_2(head_dim), dtype=jnp.int32)
        slots = start + jnp.arange(COLUMNS, dtype=jnp.int32)
        # The kernel reads an index past the end from the last place instead; a number read so counts as zero, and a
        # slot read so has the score of the last slot written again. Where head_dim is a power of two there is no
        # minimum: with it, Triton would not see that the numbers are contiguous.
        padded = numbers.size > head_dim
        there = numbers < head_dim
        numbers = jnp.minimum(numbers, head_dim - 1) if padded else numbers
        slots = jnp.minimum(slots, capacity - 1)
        summed = summed_ref[batch, head, numbers]
        keys = stored_numbers(keys_ref[layer, batch, head, slots[:, None], numbers[None, :]], float8_bits, jnp.float32)
        products = keys * summed[None, :]
        scores = (jnp.where(there[None, :], products, 0.0) if padded else products).sum(axis=1)
        if scales_ref is not None:
            scores = scores * scales_ref[layer, batch, head, slots]
        out_ref[batch, head, slots] = scores
