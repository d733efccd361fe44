"""Top-k, top-p, min-p and eta_cutoff as one threshold per row: the lowest score that every filter keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.order_statistics import Search
from pallas_kernels.shortlist_edges import reference, shortlist_edges
from tokenswift_jax.parallel.island import on_every_device
from tokenswift_jax.sample.block_topk import search_whole, shortlist, worthwhile
from tokenswift_jax.sample.params import SequenceParams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FilterParams:
    """The filters' settings, shaped to broadcast over scores.

    Every array is [batch, 1, 1] for scores [batch, rows, vocab], or [rows, 1] for scores [rows, vocab].

    Attributes:
      top_k: int32; 0 is off.
      top_p, min_p, eta_cutoff: probabilities in the scores' dtype; off at 1, 0 and 0.
      keep: int32, `min_tokens_to_keep`.
    """

    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    eta_cutoff: jax.Array
    keep: jax.Array

    @staticmethod
    def of(settings: SequenceParams, dtype: jnp.dtype) -> FilterParams:
        """The filters of a batch's settings, in the dtype of the scores."""

        def real(values: jax.Array) -> jax.Array:
            return values.astype(dtype)[:, None, None]

        top_k, keep = settings.top_k[:, None, None], settings.min_tokens_to_keep[:, None, None]
        return FilterParams(top_k, real(settings.top_p), real(settings.min_p), real(settings.eta_cutoff), keep)


# The highest score of every row; the lowest score that `min_tokens_to_keep` protects from every filter (so that one
# threshold serves all filters); and the lowest score that top-k and top-p keep. Each is [..., 1].
_Orders = tuple[jax.Array, jax.Array, jax.Array]


def threshold(scores: jax.Array, filters: FilterParams, *, search: Search, listed: bool) -> jax.Array:
    """[batch, rows, 1]: the lowest score that every filter keeps.

    Args:
      scores: [batch, rows, vocab].
      filters: the settings.
      search: how to search, static.
      listed: static; whether to gather the highest scores in a shortlist first, where that pays.
    """
    orders = _orders if listed and worthwhile(scores.shape[-1]) else _orders_of_all
    highest, floor, lowest = orders(scores, filters, search)
    edge = highest + jnp.log(filters.min_p)
    lowest = jnp.maximum(lowest, jnp.minimum(edge, floor))

    def eta_edge() -> jax.Array:
        weights = jnp.where(scores < lowest, 0, jnp.exp(scores - highest))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        log_total = jnp.log(total)
        gaps = jnp.where(weights > 0, highest - scores, 0)
        entropy = log_total + jnp.sum(weights * gaps, axis=-1, keepdims=True) / total
        log_eta = jnp.log(filters.eta_cutoff)
        edge = highest + log_total + jnp.minimum(log_eta, log_eta / 2 - entropy)
        return jnp.maximum(lowest, jnp.minimum(edge, floor))

    on = filters.eta_cutoff > 0
    return jnp.where(on, reference.if_any(on, eta_edge, lowest), lowest)


def _orders(scores: jax.Array, filters: FilterParams, search: Search) -> _Orders:
    """Searches the shortlist of every row, then all scores of the rows that their shortlist does not decide."""
    found, exact = _orders_of_few(scores, filters, search)
    whole = partial(_orders_of_all, search=search)
    return search_whole(whole, scores, filters, found, exact, search.together)


def _orders_of_all(scores: jax.Array, filters: FilterParams, search: Search) -> _Orders:
    """Searches all scores of every row, [..., vocab]."""
    highest = jnp.max(scores, axis=-1, keepdims=True)
    settings = filters.keep, filters.top_k, filters.top_p
    floor, lowest, nucleus = reference.shortlist_edges(scores, highest, *settings, None, search)
    return highest, floor, jnp.maximum(lowest, jnp.minimum(nucleus, floor))


def _orders_of_few(scores: jax.Array, filters: FilterParams, search: Search) -> tuple[_Orders, jax.Array]:
    """Searches the shortlist of every row; also returns for which rows the result is exact, bool [batch, rows, 1]."""
    few = shortlist(scores)
    highest = few.highest
    by_k, by_p = filters.top_k > 0, filters.top_p < 1
    # Without top-k, the weight of every score counts. A row's sum does not depend on the filters of its neighbours.
    total = reference.if_any(
        by_p & ~by_k, lambda: jnp.sum(jnp.exp(scores - highest), axis=-1, keepdims=True), jnp.ones_like(highest)
    )

    def per_row(values: jax.Array) -> jax.Array:
        return jnp.broadcast_to(values, highest.shape).reshape(-1, 1)

    edges = on_every_device(
        partial(shortlist_edges, search=search),
        few.scores.reshape(-1, few.scores.shape[-1]),
        per_row(highest),
        per_row(filters.keep),
        per_row(filters.top_k),
        per_row(filters.top_p),
        per_row(total),
    )
    floor, lowest, nucleus = (edge.reshape(highest.shape) for edge in edges)
    # The shortlist contains every score above `sure`, and at least BLOCKS scores of the row are no lower.
    exact = floor >= few.sure
    exact &= ~by_k | (lowest >= few.sure)
    exact &= ~by_p | ((nucleus > few.sure) & (~by_k | (lowest > few.sure)))
    return (highest, floor, jnp.maximum(lowest, jnp.minimum(nucleus, floor))), exact
