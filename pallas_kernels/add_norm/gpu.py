"""The sum and its norm for NVIDIA GPUs, by Pallas' Triton backend: one program per row, which keeps it in registers.

Limits: bfloat16, float16 or float32; a size that is a multiple of 64.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import interpret

_WARPS = 8


def add_norm(stream: jax.Array, added: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """As `pallas_kernels.add_norm`."""
    size, rows = stream.shape[-1], prod(stream.shape[:-1])
    flat = jax.ShapeDtypeStruct((rows, size), stream.dtype)
    summed, normed = pl.pallas_call(
        partial(_row, powers_of_two(size), eps),
        grid=(rows,),
        out_shape=[flat, flat],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret(),
        name="add_norm",
        cost_estimate=pl.CostEstimate(flops=5 * flat.size, transcendentals=rows, bytes_accessed=4 * stream.nbytes),
    )(stream.reshape(rows, size), added.reshape(rows, size), scale)
    return summed.reshape(stream.shape), normed.reshape(stream.shape)


def powers_of_two(size: int) -> tuple[tuple[int, int], ...]:
    """Pieces (start, size) of an array, descending powers of two, the only array sizes that Triton has."""
    pieces, start = [], 0
    for bit in reversed(range(size.bit_length())):
        if size >> bit & 1:
            pieces.append((start, 1 << bit))
            start += 1 << bit
    return tuple(pieces)


def _row(pieces: tuple[tuple[int, int], ...], eps: float, *refs: Any) -> None:
    """Program (row): writes the row's sum and its norm."""
    stream_ref, added_ref, scale_ref, summed_ref, normed_ref = refs
    row, dtype = pl.program_id(0), summed_ref.dtype
    sums, squares = [], jnp.float32(0)
    for start, size in pieces:
        at = row, pl.ds(start, size)
        rounded = (stream_ref[at].astype(jnp.float32) + added_ref[at].astype(jnp.float32)).astype(dtype)
        summed_ref[at] = rounded
        sums.append(rounded.astype(jnp.float32))
        squares += jnp.sum(sums[-1] * sums[-1])
    inverse = lax.rsqrt(squares / sum(size for _, size in pieces) + jnp.float32(eps))
    for (start, size), wide in zip(pieces, sums, strict=True):
        normed = (wide * inverse).astype(dtype).astype(jnp.float32)
        scaled = normed * scale_ref[pl.ds(start, size)].astype(jnp.float32)
        normed_ref[row, pl.ds(start, size)] = scaled.astype(dtype)
