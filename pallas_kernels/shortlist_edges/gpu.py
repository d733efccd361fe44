"""The searches of a row's shortlist for NVIDIA GPUs, by Pallas' Triton backend: one program per row.

A program keeps its row in registers and runs the reference's own code on it, one bit of the answer per pass.

Limits: float32 scores, a power of two of them and of parts of the weight per row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import interpret
from pallas_kernels.shortlist_edges import reference

_WARPS = 8


def shortlist_edges(
    scores: jax.Array, highest: jax.Array, keep: jax.Array, top_k: jax.Array, top_p: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `pallas_kernels.shortlist_edges`."""
    rows, count = scores.shape
    per_text = [values.reshape(-1) for values in (keep, top_k, top_p)]
    edges = pl.pallas_call(
        partial(_search_row, rows // keep.size),
        grid=(rows,),
        out_shape=[jax.ShapeDtypeStruct((rows,), scores.dtype)] * 3,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret(),
        name="shortlist_edges",
        cost_estimate=pl.CostEstimate(
            flops=3 * 32 * 2 * rows * count,
            transcendentals=rows * count,
            bytes_accessed=4 * rows * (count + weights.shape[1]),
        ),
    )(scores, highest.reshape(rows), *per_text, weights)
    floor, counted, nucleus = (edge.reshape(rows, 1) for edge in edges)
    return floor, counted, nucleus


def _search_row(each: int, *refs: Any) -> None:
    """Program (row): writes the row's three scores; a text has `each` rows."""
    scores_ref, highest_ref, keep_ref, top_k_ref, top_p_ref, weights_ref, *out_refs = refs
    row = pl.program_id(0)
    scores, total = scores_ref[row, :][None, :], jnp.sum(weights_ref[row, :]).reshape(1, 1)
    highest = highest_ref[row].reshape(1, 1)
    keep, top_k, top_p = (ref[row // each].reshape(1, 1) for ref in (keep_ref, top_k_ref, top_p_ref))
    edges = reference.shortlist_edges(scores, highest, keep, top_k, top_p, total, condition=_if_this_row)
    for ref, edge in zip(out_refs, edges, strict=True):
        ref[row] = edge.reshape(())


def _if_this_row(on: jax.Array, compute: Callable[[], jax.Array], otherwise: jax.Array) -> jax.Array:
    return lax.cond(on.reshape(()), compute, lambda: otherwise)
