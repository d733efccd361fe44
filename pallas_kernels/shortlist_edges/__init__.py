"""The lowest scores that `min_tokens_to_keep`, top-k and top-p keep, of rows whose highest scores are gathered."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import choose
from pallas_kernels.order_statistics import RadixSearch
from pallas_kernels.shortlist_edges import reference

__all__ = ["shortlist_edges"]


def shortlist_edges(
    scores: jax.Array,
    highest: jax.Array,
    keep: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    weights: jax.Array,
    search: RadixSearch,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three scores per row, [rows, 1] each, exact as far as the shortlist contains the scores that decide them.

    They are the lowest score that `min_tokens_to_keep` protects; the lowest one that top-k keeps, -inf without top-k;
    and the edge of the nucleus among those (`order_statistics.nucleus_edge`), the second again without top-p. A row's
    scores do not depend on its neighbours.

    On a GPU one kernel searches every row in registers; XLA would launch a kernel per pass, about 100 in all.

    Args:
      scores: [rows, count], every row's highest scores in any order.
      highest: [rows, 1], the highest of each row.
      keep: int32 [texts, 1], `min_tokens_to_keep`. Each text has rows / texts rows, one after another.
      top_k: int32 [texts, 1]; 0 is off.
      top_p: [texts, 1] in the dtype of the scores; 1 is off.
      weights: [rows, parts], the sums of exp(score - highest) over the parts of the whole row, which rows with top-p
        and without top-k read.
      search: how the reference searches, static.
    """
    # The kernel holds a row in registers, as float32; Triton's arrays have powers of two as sizes.
    sizes = scores.shape[1], weights.shape[1]
    fits = scores.dtype == jnp.float32 and all(size & (size - 1) == 0 for size in sizes)
    if choose("shortlist_edges", ("reference", "gpu") if fits else ("reference",)) == "gpu":
        # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
        from pallas_kernels.shortlist_edges import gpu

        return gpu.shortlist_edges(scores, highest, keep, top_k, top_p, weights)
    each = scores.shape[0] // keep.shape[0]
    keep, top_k, top_p = (jnp.repeat(values, each, axis=0) for values in (keep, top_k, top_p))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return reference.shortlist_edges(scores, highest, keep, top_k, top_p, total, search)
