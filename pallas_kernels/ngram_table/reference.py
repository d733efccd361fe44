"""The definition in plain jnp."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ngram_table.sets import (
    COUNT,
    FIELDS,
    FIRST,
    LAST,
    LENGTH,
    ROWS,
    BestContinuation,
    NgramUpdate,
    choose,
    grams_at,
    placed,
    read,
    write,
)


def ngram_update(
    entries: jax.Array,
    inserted: jax.Array,
    tokens: jax.Array,
    eligible: jax.Array,
    *,
    most: int,
    key: jax.Array | None = None,
    k: int = 0,
) -> NgramUpdate:
    """As `pallas_kernels.ngram_table.ngram_update`."""
    best = None
    if key is not None:
        best = best_continuation(entries, key[:, 0], k)
        # No field is ever negative, so this changes nothing. Without it, XLA writes the table before it has read every
        # field and copies all of the table.
        eligible = jnp.where(reduce(jnp.minimum, best) >= 0, eligible, inserted)
    start = jnp.maximum(inserted, LENGTH - 1)
    stop = jnp.minimum(eligible, start + most)
    ends = start[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
    grams = grams_at(tokens, ends)
    first = grams[..., 0]
    home = first % entries.shape[1]
    sets = read(entries, first)
    places = []
    # This code reads and writes the table once, so each step also updates the copies of its set that the other
    # insertions read.
    for step in range(most):
        fields, place = choose(sets[:, step], grams[:, step], ends[:, step], 1)
        place = jnp.where(ends[:, step] < stop, place, -1)
        sets = placed(sets, fields[:, None], jnp.where(home == home[:, step, None], place[:, None], -1))
        places.append(place)
    place = jnp.stack(places, axis=1)
    fields = jnp.take_along_axis(sets, place[..., None, None], axis=-1, mode="clip")[..., 0]
    return NgramUpdate(write(entries, first, fields, place), jnp.maximum(inserted, stop), best)


def best_continuation(entries: jax.Array, key: jax.Array, k: int) -> BestContinuation:
    """`NgramUpdate.best` of first tokens int32 [batch]."""
    sets, rank = (found[:, 0] for found in _ranked(entries, key[:, None]))
    count, second = sets[:, COUNT], sets[:, FIRST + 1]
    best = (rank == 0) & (count > 0)
    following = _sum(jnp.where(best, second, 0))
    through = _sum(jnp.where((rank < k) & (second == following[:, None, None]), count, 0))
    return BestContinuation(following, jnp.max(count, axis=(-2, -1)), through, _sum(count))


def lookup(entries: jax.Array, first: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k most frequent continuations of each first token, ties to the most recent one.

    Args:
        entries: the table.
        first: int32 `[batch, keys]`, first tokens.
        k: number of continuations; those beyond a table row's entries are empty.

    Returns:
        continuations int32 `[batch, keys, k, 3]`, counts int32 `[batch, keys, k]` in descending order (0: none), and
        totals int32 `[batch, keys]`, the sum of all counts in the table row of that first token.
    """
    sets, rank = _ranked(entries, first)
    count = sets[..., COUNT, :, :]
    place = jnp.arange(k, dtype=jnp.int32).reshape(*(1,) * first.ndim, k, 1, 1)
    entry = lax.broadcasted_iota(jnp.int32, count.shape, count.ndim - 2) * count.shape[-1]
    entry += lax.broadcasted_iota(jnp.int32, count.shape, count.ndim - 1)
    chosen = jnp.max(jnp.where(rank[..., None, :, :] == place, entry[..., None, :, :], -1), axis=(-2, -1))
    fields = sets.reshape(*first.shape, FIELDS, -1)
    picked = jnp.take_along_axis(fields, chosen[..., None, :], axis=-1, mode="clip")
    picked = jnp.where(chosen[..., None, :] >= 0, picked, 0)
    continuations = jnp.moveaxis(picked[..., FIRST + 1 :, :], -2, -1)
    return continuations, picked[..., COUNT, :], _sum(count)


def _ranked(entries: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sets of first tokens [batch, keys], int32 [batch, keys, 6, table rows, slots], with zeros for other tokens'
    entries, and the ranks of the entries, int32 [batch, keys, table rows, slots]: 0 for the most frequent one."""
    slots = entries.shape[-1] // (FIELDS * ROWS)
    # Without an axis for the table rows of a set, XLA on a CPU splits a sum over more than 32 entries into two loops
    # (31 us per lookup instead of 2).
    sets = read(entries, first).reshape(*first.shape, FIELDS, ROWS, slots)
    own = sets[..., FIRST, :, :] == first[..., None, None]
    sets = jnp.where(own[..., None, :, :], sets, 0)
    count, last = sets[..., COUNT, :, :], sets[..., LAST, :, :]
    # Pairwise comparison gives the ranks: XLA compiles it to one small loop, and a sort to many. No two entries of a
    # table row end at the same position; the entries of other table rows are zeros here and share the last rank.
    other_count, other_last = count[..., None, None, :, :], last[..., None, None, :, :]
    count_, last_ = count[..., None, None], last[..., None, None]
    return sets, _sum((other_count > count_) | ((other_count == count_) & (other_last > last_)))


def _sum(values: jax.Array) -> jax.Array:
    """The sum over all entries of a set."""
    return jnp.sum(values, axis=(-2, -1), dtype=jnp.int32)
