"""Sets of the n-gram table: choice of the entry of its set that a 4-gram takes.

A set is int32 `[6, entries]`. The six fields of an entry are the count (0: the entry is empty), the position of the
last token at the newest occurrence, the first token, and the three tokens that continue it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LENGTH = 4
FIELDS = 2 + LENGTH
COUNT, LAST, FIRST = 0, 1, 2
ROWS = 2  # full table rows that fit a set
NONE = 2**31 - 1


class BestContinuation(NamedTuple):
    """The most frequent continuation of a first token, ties to the most recent one; zeros if there is none.

    Attributes:
      following: int32 `[batch]`, its first token.
      count: int32 `[batch]`.
      through: int32 `[batch]`, the counts of those of the k most frequent continuations that begin with `following`.
      total: int32 `[batch]`, the counts of all continuations.
    """

    following: jax.Array
    count: jax.Array
    through: jax.Array
    total: jax.Array


class NgramUpdate(NamedTuple):
    """The table after an insertion.

    Attributes:
      entries: int32 `[batch, sets, 6 * entries]`, the table.
      inserted: int32 `[batch]`.
      best: of the first token that was looked up before the insertion; None without one.
    """

    entries: jax.Array
    inserted: jax.Array
    best: BestContinuation | None


def grams_at(tokens: jax.Array, ends: jax.Array) -> jax.Array:
    """The 4-grams of texts int32 `[batch, capacity]` whose last tokens are at positions int32 `[batch, m]`: int32
    `[batch, m, 4]`. Positions outside the text are clipped to it."""
    batch = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None, None]
    return tokens.at[batch, ends[..., None] + jnp.arange(1 - LENGTH, 1, dtype=jnp.int32)[None, None]].get(mode="clip")


def read(entries: jax.Array, first: jax.Array) -> jax.Array:
    """The sets, int32 `[batch, m, 6, entries]`, of first tokens int32 `[batch, m]`; `entries` is the table's array."""
    batch = jnp.arange(first.shape[0], dtype=jnp.int32)[:, None]
    sets = entries.at[batch, first % entries.shape[1]].get(mode="promise_in_bounds")
    return sets.reshape(*first.shape, FIELDS, -1)


def write(entries: jax.Array, first: jax.Array, fields: jax.Array, place: jax.Array) -> jax.Array:
    """Replaces one entry of each first token's set in the table; -1 as its place changes nothing.

    Two updates of the same entry must be equal: GPUs do not keep the order of a scatter's updates.

    Args:
        entries: the table's array.
        first: int32 `[batch, m]`.
        fields: int32 `[batch, m, 6]`.
        place: int32 `[batch, m]`.
    """
    batch = jnp.arange(first.shape[0], dtype=jnp.int32)[:, None, None]
    width = entries.shape[-1]
    at = jnp.where(place < 0, width, place)[..., None]  # XLA drops updates beyond a set
    at = at + jnp.arange(FIELDS, dtype=jnp.int32)[None, None] * (width // FIELDS)
    return entries.at[batch, (first % entries.shape[1])[..., None], at].set(fields, mode="drop")


def choose(sets: jax.Array, grams: jax.Array, ends: jax.Array, weight: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Chooses the entry that a 4-gram takes: its own, else an empty one, else the one that its table row gives up.

    Args:
        sets: int32 `[.., 6, entries]`, the 4-grams' sets.
        grams: int32 `[.., 4]`.
        ends: int32 `[..]`, the positions of their last tokens, later than all earlier insertions.
        weight: int32 `[..]`, the number of insertions of each.

    Returns:
        the entry's new fields, int32 `[.., 6]`, and its place, int32 `[..]`: -1 if there is no entry to take.
    """
    count, last = sets[..., COUNT, :], sets[..., LAST, :]
    place = lax.broadcasted_iota(jnp.int32, count.shape, count.ndim - 1)
    same = (sets[..., FIRST:, :] == grams[..., None]) & (count > 0)[..., None, :]
    own, known = same[..., 0, :], same.all(axis=-2)
    # A known continuation scores below the others of its table row, and its score encodes its count.
    score = jnp.where(own, jnp.where(known, count - NONE, count), NONE)
    free = jnp.where(count > 0, NONE, place)
    none = jnp.int32(NONE)
    # With one reduction, a GPU runs one kernel and a CPU one loop.
    least, _, given_up, free, size = lax.reduce(
        (score, last, place, free, own.astype(jnp.int32)),
        (none, none, none, none, jnp.int32(0)),
        _both,
        (count.ndim - 1,),
    )
    grows = (size < count.shape[-1] // ROWS) & (free < NONE) & (least >= 0)
    taken = jnp.where(grows, free, jnp.where(least < NONE, given_up, -1))
    grown = jnp.where(least < 0, least + NONE, 0) + weight
    return jnp.concatenate([jnp.stack([grown, ends], axis=-1), grams], axis=-1), taken


def placed(sets: jax.Array, fields: jax.Array, place: jax.Array) -> jax.Array:
    """Writes fields `[.., 6]` to the entries at `place` `[..]` of sets int32 `[.., 6, entries]`; -1 changes nothing."""
    entry = lax.broadcasted_iota(jnp.int32, (*place.shape, sets.shape[-1]), place.ndim)
    here = entry == place[..., None]
    return jnp.where(here[..., None, :], fields[..., None], sets)


def _both(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Merges two parts of a set: the lexicographically least (score, last, place), the first free place, the size."""
    first = (a[0] < b[0]) | ((a[0] == b[0]) & ((a[1] < b[1]) | ((a[1] == b[1]) & (a[2] < b[2]))))
    smaller = (jnp.where(first, x, y) for x, y in zip(a[:3], b[:3], strict=True))
    return (*smaller, jnp.minimum(a[3], b[3]), a[4] + b[4])
