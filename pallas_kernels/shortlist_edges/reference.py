"""The definition: three searches over every row, whether its scores are a shortlist or all there are."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.order_statistics import ONE_BIT, RadixSearch, kth_largest, nucleus_edge

Condition = Callable[[jax.Array, Callable[[], jax.Array], jax.Array], jax.Array]


def if_any(on: jax.Array, compute: Callable[[], jax.Array], otherwise: jax.Array) -> jax.Array:
    """`compute()` if some row needs it, else `otherwise`: a search that no row of the batch asks for costs nothing."""
    return lax.cond(jnp.any(on), compute, lambda: otherwise)


def shortlist_edges(
    scores: jax.Array,
    highest: jax.Array,
    keep: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    total: jax.Array | None,
    search: RadixSearch = ONE_BIT,
    condition: Condition = if_any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `pallas_kernels.shortlist_edges`, for scores [..., count] and settings that broadcast to [..., 1].

    Args:
      total: the sum of the weights there; None where `scores` are the whole row.
      condition: skips searches that no row needs.
    """
    nothing = jnp.full_like(highest, -jnp.inf)
    several, by_k, by_p = keep > 1, top_k > 0, top_p < 1
    floor = condition(several, lambda: kth_largest(scores, keep, search), highest)
    floor = jnp.where(several, floor, highest)
    counted = condition(by_k, lambda: kth_largest(scores, jnp.maximum(top_k, keep), search), nothing)
    counted = jnp.where(by_k, counted, nothing)

    def nucleus() -> jax.Array:
        if total is None:
            return nucleus_edge(scores, highest, counted, top_p, search)
        # The shortlist contains all tokens that top-k keeps, unless they reach its end.
        own = jnp.where(scores < counted, 0, jnp.exp(scores - highest))
        listed = jnp.sum(own, axis=-1, keepdims=True)
        return nucleus_edge(scores, highest, counted, top_p, search, jnp.where(by_k, listed, total))

    return floor, counted, jnp.where(by_p, condition(by_p, nucleus, counted), counted)
