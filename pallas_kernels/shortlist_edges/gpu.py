"""The searches of a row's shortlist for NVIDIA GPUs, by Pallas' Triton backend: one program per row.

A program keeps its row in registers and runs the reference's own code on it, one bit of the answer per pass.

Limits: float32 scores, a power of two of them per row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import interpret
from pallas_kernels.shortlist_edges import reference

_WARPS = 8


def shortlist_edges(
    scores: jax.Array, highest: jax.Array, keep: jax.Array, top_k: jax.Array, top_p: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `pallas_kernels.shortlist_edges`."""
    rows, count = scores.shape
    per_row = [values.reshape(rows) for values in (highest, keep, top_k, top_p, total)]
    edges = pl.pallas_call(
        _search_row,
        grid=(rows,),
        out_shape=[jax.ShapeDtypeStruct((rows,), scores.dtype)] * 3,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret(),
        name="shortlist_edges",
        cost_estimate=pl.CostEstimate(
            flops=3 * 32 * 2 * rows * count, transcendentals=rows * count, bytes_accessed=4 * rows * count
        ),
    )(scores, *per_row)
    floor, counted, nucleus = (edge.reshape(rows, 1) for edge in edges)
    return floor, counted, nucleus


def _search_row(scores_ref, highest_ref, keep_ref, top_k_ref, top_p_ref, total_ref, *out_refs) -> None:
    """Program (row): writes the row's three scores."""
    row = pl.program_id(0)
    scores = scores_ref[row, :][None, :]
    given = [ref[row].reshape(1, 1) for ref in (highest_ref, keep_ref, top_k_ref, top_p_ref, total_ref)]
    for ref, edge in zip(out_refs, reference.shortlist_edges(scores, *given, condition=_if_this_row), strict=True):
        ref[row] = edge.reshape(())


def _if_this_row(on: jax.Array, compute: Callable[[], jax.Array], otherwise: jax.Array) -> jax.Array:
    return lax.cond(on.reshape(()), compute, lambda: otherwise)
