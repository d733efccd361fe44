"""Rotation and cache write for NVIDIA GPUs, by Pallas' Triton backend: one program per row and KV head.

Limits: bfloat16, float16 or float32, in the heads as in the cache; half a head is a power of two, 16 at least.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import interpret
from pallas_kernels.rotate_write.heads import HeadNorms, RotatedHeads


def rotate_write(
    heads: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    layer: int | jax.Array,
    starts: jax.Array,
    norms: HeadNorms | None = None,
) -> RotatedHeads:
    """As `pallas_kernels.rotate_write`; the cache's arrays are aliased."""
    batch, rows, kv_heads, members, head_dim = heads.shape
    scales = [] if norms is None else [norms.queries, norms.keys]
    given = [jnp.asarray(layer, jnp.int32).reshape(1), starts, heads, cos, sin, *scales, keys, values]
    own = jax.ShapeDtypeStruct((batch, rows, kv_heads, head_dim), heads.dtype)
    queries = jax.ShapeDtypeStruct((batch, rows, kv_heads * (members - 2), head_dim), heads.dtype)
    results = pl.pallas_call(
        partial(_row, rows, members - 2, None if norms is None else norms.eps),
        grid=(batch * rows, kv_heads),
        out_shape=[queries, own, own, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values))],
        input_output_aliases={len(given) - 2: 3, len(given) - 1: 4},
        compiler_params=plgpu.CompilerParams(num_warps=1 if members <= 6 else 2, num_stages=1),
        interpret=interpret(),
        name="rotate_write",
        cost_estimate=pl.CostEstimate(
            flops=6 * heads.size, transcendentals=heads.shape[0] * rows, bytes_accessed=3 * heads.nbytes
        ),
    )(*given)
    return RotatedHeads(*results)


def _row(rows: int, group: int, eps: float | None, *refs: Any) -> None:
    """Program (text and row, KV head): writes the heads' results, and K/V to the row's slot."""
    layer_ref, starts_ref, heads_ref, cos_ref, sin_ref, *rest = refs
    scales = rest[:2] if eps is not None else (None, None)
    queries_ref, own_keys_ref, own_values_ref, keys_ref, values_ref = rest[-5:]
    text, row, head = pl.program_id(0) // rows, pl.program_id(0) % rows, pl.program_id(1)
    half, dtype = cos_ref.shape[-1], queries_ref.dtype
    spans = pl.ds(0, half), pl.ds(half, half)
    numbers = jnp.arange(half, dtype=jnp.int32)[None, :]
    cos, sin = (ref[text, row, :].astype(jnp.float32)[None, :] for ref in (cos_ref, sin_ref))

    def turned(member: jax.Array, scale: Any) -> list[jax.Array]:
        """The halves [members, head_dim / 2] of heads, normalised and rotated."""
        first, second = (
            heads_ref[text, row, head, member[:, None], start + numbers].astype(jnp.float32) for start in (0, half)
        )
        if eps is not None:
            squares = jnp.sum(first * first + second * second, axis=1, keepdims=True)
            inverse = lax.rsqrt(squares / (2 * half) + jnp.float32(eps))
            # The rounding between the operations is the reference's.
            first, second = (
                ((x * inverse).astype(dtype).astype(jnp.float32) * scale[span].astype(jnp.float32)[None, :])
                .astype(dtype)
                .astype(jnp.float32)
                for x, span in zip((first, second), spans, strict=True)
            )
        return [(first * cos - second * sin).astype(dtype), (second * cos + first * sin).astype(dtype)]

    # Past the last query, the program computes and writes the last query again.
    member = jnp.minimum(jnp.arange(pl.next_power_of_2(group), dtype=jnp.int32), group - 1)
    for start, part in zip((0, half), turned(member, scales[0]), strict=True):
        queries_ref[text, row, head * group + member[:, None], start + numbers] = part
    layer, slot = layer_ref[0], starts_ref[text] + row
    for span, part in zip(spans, turned(jnp.full((1,), group, jnp.int32), scales[1]), strict=True):
        own_keys_ref[text, row, head, span] = part.reshape(half)
        keys_ref[layer, text, head, slot, span] = part.reshape(half)
    for span in spans:
        value = heads_ref[text, row, head, group + 1, span]
        own_values_ref[text, row, head, span] = value
        values_ref[layer, text, head, slot, span] = value
