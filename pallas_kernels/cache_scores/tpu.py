"""The selection pass for TPUs, by Pallas' Mosaic backend: the kernel reads keys once and writes one score a slot.

The program of a (sequence, step) scores a block of slots of every KV head. The number of steps is an argument, so slots
that are not eligible cost neither bytes nor steps, except at the ends of blocks. Where head_dim does not fill the 128
lanes, XLA stores the cache with the slots along the lanes, and the kernel reads the transposed view [head_dim, slots].

Limits, each a ValueError: queries of bfloat16 or float32; head_dim a multiple of 8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.cache_scores.reference import summed_group
from pallas_kernels.implementation import interpret

LANES = 128
# Bytes of keys that a step fetches, double-buffered. The fixed cost of a step is a third of a microsecond, in which a
# v5p moves one megabyte.
STEP_BYTES = 2**20
SUBLANES = 16  # rows of one register of bfloat16


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
    if query.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the query is {query.dtype}; the TPU kernel takes bfloat16 and float32")
    if head_dim % 8:
        raise ValueError(f"head_dim is {head_dim}; the TPU kernel takes multiples of 8")
    slots_minor = head_dim % LANES != 0
    columns = _columns(capacity, kv_heads * head_dim * keys.dtype.itemsize)
    last = jnp.maximum(pl.cdiv(ends, columns), 1) - 1
    first = jnp.minimum(jnp.maximum(begins, 0) // columns, last)
    steps = (last - first).max() + 1

    def at_step(b, step, first_ref, last_ref):
        # Past a sequence's last block the index stays, so the kernel fetches nothing and writes the same scores again.
        return jnp.minimum(first_ref[b] + step, last_ref[b])

    def cached(b, j, layer_ref, first_ref, last_ref):
        block = at_step(b, j, first_ref, last_ref)
        return (layer_ref[0], b, 0, 0, block) if slots_minor else (layer_ref[0], b, 0, block, 0)

    shape = (None, None, kv_heads, head_dim, columns) if slots_minor else (None, None, kv_heads, columns, head_dim)
    parts = _parts(summed_group(query, kv_heads), keys.dtype)
    given: list[Any] = [parts, keys.swapaxes(3, 4) if slots_minor else keys]
    specs = [
        pl.BlockSpec((None, *parts.shape[1:]), lambda b, j, *_: (b, 0, 0, 0)),
        pl.BlockSpec(shape, cached),
    ]
    if key_scales is not None:
        given.append(key_scales)
        specs.append(
            pl.BlockSpec(
                (None, None, kv_heads, columns), lambda b, j, layer, *refs: (layer[0], b, 0, at_step(b, j, *refs))
            )
        )
    return pl.pallas_call(
        partial(_score_block, kv_heads, slots_minor),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, steps),
            in_specs=specs,
            out_specs=pl.BlockSpec((None, kv_heads, columns), lambda b, j, _, *refs: (b, 0, at_step(b, j, *refs))),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, kv_heads, capacity), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret(),
        name="cache_scores",
        cost_estimate=pl.CostEstimate(
            flops=2 * SUBLANES * batch * kv_heads * capacity * head_dim,
            transcendentals=0,
            bytes_accessed=keys.nbytes // keys.shape[0] + 4 * batch * kv_heads * capacity,
        ),
    )(jnp.asarray(layer, jnp.int32).reshape(1), first, last, *given)


def _score_block(kv_heads: int, slots_minor: bool, *refs: Any) -> None:
    """Program (sequence, step): writes the scores [kv_heads, columns] of one block of slots."""
    parts_ref, keys_ref = refs[3:5]
    scales_ref, out_ref = refs[5] if len(refs) == 7 else None, refs[-1]
    exact = parts_ref.dtype == jnp.float32
    for head in range(kv_heads):
        products = lax.dot_general(
            parts_ref[head],
            keys_ref[head].astype(parts_ref.dtype),
            (((1,), (0 if slots_minor else 1,)), ((), ())),
            precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )
        scores = products.sum(axis=0, keepdims=True)
        if scales_ref is not None:
            scores = scores * scales_ref[head : head + 1, :]
        out_ref[head : head + 1, :] = scores


def _parts(summed: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows [batch, kv_heads, rows, head_dim] that add up to the summed query float32 [batch, kv_heads, head_dim].

    Three bfloat16 numbers represent one float32 number, so that the matrix unit multiplies keys of at most 8
    significant bits exactly in one pass instead of six.
    """
    if dtype == jnp.float32:
        rows, wanted = [summed], jnp.float32
    else:
        rows, wanted = [], jnp.bfloat16
        for _ in range(3):
            # Without reduce_precision, XLA removes the rounding: it takes a conversion there and back for a no-op.
            rows.append(lax.reduce_precision(summed, 8, 7))
            summed = summed - rows[-1]
    stacked = jnp.stack(rows, axis=2).astype(wanted)
    return jnp.pad(stacked, ((0, 0), (0, 0), (0, SUBLANES - len(rows)), (0, 0)))


def _columns(capacity: int, slot_bytes: int) -> int:
    """Slots of a step: STEP_BYTES of keys, a power of two and at least the 128 lanes."""
    fitting = 1 << max(STEP_BYTES // slot_bytes, LANES).bit_length() - 1
    columns = min(fitting, 4096)
    return capacity if capacity <= columns else columns
