"""Top-k, top-p, min-p and eta_cutoff as one threshold per row: the lowest score that every filter keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.order_statistics import RadixSearch
from pallas_kernels.shortlist_edges import reference, shortlist_edges
from tokenswift_jax.parallel.island import on_every_device
from tokenswift_jax.parallel.rules import one_device
from tokenswift_jax.sample.block_topk import WIDTH, is_profitable, search_whole, shortlist
from tokenswift_jax.sample.params import SequenceParams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FilterParams:
    """The filters' settings, shaped to broadcast over scores.

    Every array is [texts, 1, 1] for scores [texts, rows, vocab], or [rows, 1] for scores [rows, vocab].

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


def threshold(scores: jax.Array, filters: FilterParams, *, search: RadixSearch, listed: bool) -> jax.Array:
    """[texts, rows, 1]: the lowest score that every filter keeps.

    Args:
      scores: [texts, rows, vocab].
      filters: the settings.
      search: how to search, static.
      listed: static; whether to gather the highest scores in a shortlist first, where that pays.
    """
    if not (listed and is_profitable(scores.shape[-1])):
        orders = _orders_of_all(scores, filters, search)
        return _with_eta(scores, filters, orders, _with_min_p(filters, orders))
    orders, exact = _orders_of_few(scores, filters, search)

    def settle(scores: jax.Array, known: tuple[FilterParams, _Orders, jax.Array]) -> jax.Array:
        filters, orders, exact = known
        searched = jax.lax.cond(jnp.all(exact), lambda: orders, lambda: _orders_of_all(scores, filters, search))
        orders = jax.tree.map(partial(jnp.where, exact), orders, searched)
        return _with_eta(scores, filters, orders, _with_min_p(filters, orders))

    # Few rows need all their scores. They do it in one loop, because XLA launches each branch of its own for all rows.
    settled = exact & (filters.eta_cutoff == 0)
    known = filters, orders, exact
    return search_whole(settle, scores, known, _with_min_p(filters, orders), settled, search.scores_at_once)


def _with_min_p(filters: FilterParams, orders: _Orders) -> jax.Array:
    """The lowest score that top-k, top-p and min-p keep, [..., 1]."""
    highest, floor, lowest = orders
    edge = highest + jnp.log(filters.min_p)
    return jnp.maximum(lowest, jnp.minimum(edge, floor))


def _with_eta(scores: jax.Array, filters: FilterParams, orders: _Orders, lowest: jax.Array) -> jax.Array:
    """The lowest score that eta_cutoff keeps of those from `lowest` on, [..., 1]."""
    highest, floor, _ = orders

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


def _orders_of_all(scores: jax.Array, filters: FilterParams, search: RadixSearch) -> _Orders:
    """Searches all scores of every row, [..., vocab]."""
    highest = jnp.max(scores, axis=-1, keepdims=True)
    settings = filters.keep, filters.top_k, filters.top_p
    floor, lowest, nucleus = reference.shortlist_edges(scores, highest, *settings, None, search)
    return highest, floor, jnp.maximum(lowest, jnp.minimum(nucleus, floor))


def _orders_of_few(scores: jax.Array, filters: FilterParams, search: RadixSearch) -> tuple[_Orders, jax.Array]:
    """Searches the shortlist of every row; also returns for which rows the result is exact, bool [texts, rows, 1]."""
    few = shortlist(scores)
    highest = few.highest
    by_k, by_p = filters.top_k > 0, filters.top_p < 1
    edges = on_every_device(
        partial(shortlist_edges, search=search),
        few.scores.reshape(-1, few.scores.shape[-1]),
        highest.reshape(-1, 1),
        *(values.reshape(-1, 1) for values in (filters.keep, filters.top_k, filters.top_p)),
        _weights(scores, highest, filters, apart=search.unroll and one_device()),
    )
    floor, lowest, nucleus = (edge.reshape(highest.shape) for edge in edges)
    # The shortlist contains every score above `guaranteed_above`, and at least BLOCKS scores of the row are no lower.
    exact = floor >= few.guaranteed_above
    exact &= ~by_k | (lowest >= few.guaranteed_above)
    exact &= ~by_p | ((nucleus > few.guaranteed_above) & (~by_k | (lowest > few.guaranteed_above)))
    return (highest, floor, jnp.maximum(lowest, jnp.minimum(nucleus, floor))), exact


def _weights(scores: jax.Array, highest: jax.Array, filters: FilterParams, *, apart: bool) -> jax.Array:
    """The sums of exp(score - highest) over the parts of every row, [texts * rows, parts]; without top-k, a nucleus
    counts the weight of every score. A row's sums do not depend on its neighbours' filters.

    Args:
      scores: [texts, rows, vocab].
      highest: [texts, rows, 1].
      filters: the settings.
      apart: static; whether a row has many parts, which the search kernel adds: a GPU adds a whole row in two kernels.
        Else it has one and an empty one, and the sum is 1 where no row needs it.
    """
    if apart:
        parts = 1 << (-(-scores.shape[-1] // WIDTH) - 1).bit_length()
        filled = [(0, 0)] * (scores.ndim - 1) + [(0, WIDTH * parts - scores.shape[-1])]
        blocks = jnp.pad(scores, filled, constant_values=-jnp.inf).reshape(*scores.shape[:-1], WIDTH, parts)
        return jnp.sum(jnp.exp(blocks - highest[..., None]), axis=-2).reshape(-1, parts)

    def whole_sums() -> jax.Array:
        return jnp.sum(jnp.exp(scores - highest), axis=-1, keepdims=True)

    needed = (filters.top_p < 1) & (filters.top_k == 0)
    sums = reference.if_any(needed, whole_sums, jnp.ones_like(highest)).reshape(-1, 1)
    return jnp.pad(sums, [(0, 0), (0, 1)])
