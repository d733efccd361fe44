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
    continuations, counts, totals = lookup(entries, key[:, None], k)
    first, counts = continuations[:, 0, :, 0], counts[:, 0]
    through = jnp.sum(jnp.where(first == first[:, :1], counts, 0), axis=1, dtype=jnp.int32)
    return BestContinuation(first[:, 0], counts[:, 0], through, totals[:, 0])


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
    ahead = (other_count > count_) | ((other_count == count_) & (other_last > last_))
    rank = jnp.sum(ahead, axis=(-2, -1), dtype=jnp.int32)
    place = jnp.arange(k, dtype=jnp.int32).reshape(*(1,) * first.ndim, k, 1, 1)
    entry = lax.broadcasted_iota(jnp.int32, count.shape, count.ndim - 2) * slots
    entry += lax.broadcasted_iota(jnp.int32, count.shape, count.ndim - 1)
    chosen = jnp.max(jnp.where(rank[..., None, :, :] == place, entry[..., None, :, :], -1), axis=(-2, -1))
    fields = sets.reshape(*first.shape, FIELDS, -1)
    picked = jnp.take_along_axis(fields, chosen[..., None, :], axis=-1, mode="clip")
    picked = jnp.where(chosen[..., None, :] >= 0, picked, 0)
    continuations = jnp.moveaxis(picked[..., FIRST + 1 :, :], -2, -1)
    return continuations, picked[..., COUNT, :], jnp.sum(count, axis=(-2, -1), dtype=jnp.int32)
