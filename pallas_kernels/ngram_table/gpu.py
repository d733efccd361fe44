"""Lookup and insertion for NVIDIA GPUs, by Pallas' Triton backend: one program per text, which holds every set that
it needs in registers.

Limits: a power of two of entries per set, 128 at most (it compares all pairs).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.gpu_memory import synchronise
from pallas_kernels.implementation import interpret
from pallas_kernels.ngram_table.sets import (
    COUNT,
    FIELDS,
    FIRST,
    LAST,
    LENGTH,
    NONE,
    ROWS,
    BestContinuation,
    NgramUpdate,
)

_WARPS = 4


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
    """As `pallas_kernels.ngram_table.ngram_update`; the table is aliased."""
    batch, sets, words = entries.shape
    given = [tokens, eligible, *([] if key is None else [key]), inserted, entries]
    shape = jax.ShapeDtypeStruct
    best = [] if key is None else [shape((batch,), jnp.int32)] * len(BestContinuation._fields)
    results = pl.pallas_call(
        partial(_text, most, None if key is None else k, sets),
        grid=(batch,),
        out_shape=[shape((batch,), jnp.int32), shape(entries.shape, jnp.int32), *best],
        input_output_aliases={len(given) - 2: 0, len(given) - 1: 1},
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret(),
        name="ngram_table",
        cost_estimate=pl.CostEstimate(
            flops=batch * words * words, transcendentals=0, bytes_accessed=4 * batch * words * (most + 1)
        ),
    )(*given)
    return NgramUpdate(results[1], results[0], None if key is None else BestContinuation(*results[2:]))


class _Set(NamedTuple):
    """The fields of a set's entries, int32 [entries] each, or of one entry, int32 [] each, in the table's order."""

    count: jax.Array
    last: jax.Array
    first: jax.Array
    second: jax.Array
    third: jax.Array
    fourth: jax.Array

    @property
    def grams(self) -> tuple[jax.Array, ...]:
        return self[FIRST:]

    def where(self, here: jax.Array, other: _Set) -> _Set:
        """Takes the other's fields `here`."""
        return _Set(*(jnp.where(here, new, old) for old, new in zip(self, other, strict=True)))


def _text(most: int, k: int | None, sets: int, *refs: Any) -> None:
    """Program (text): looks its key up if there is one (`k`), then inserts up to `most` 4-grams."""
    tokens_ref, eligible_ref, *key_ref = refs[: 2 if k is None else 3]
    inserted_ref, entries_ref, done_ref, table_ref, *best_ref = refs[2 + len(key_ref) :]
    text, capacity, size = pl.program_id(0), tokens_ref.shape[1], entries_ref.shape[2] // FIELDS
    place = jnp.arange(size, dtype=jnp.int32)

    def read(first: jax.Array) -> tuple[jax.Array, _Set]:
        home = first % sets
        return home, _Set(*(entries_ref[text, home, pl.ds(field * size, size)] for field in range(FIELDS)))

    inserted = inserted_ref[text]
    start = jnp.maximum(inserted, LENGTH - 1)
    stop = jnp.minimum(eligible_ref[text], start + most)
    grams, homes, read_sets = [], [], []
    for step in range(most):
        at = [jnp.clip(start + step + back, 0, capacity - 1) for back in range(1 - LENGTH, 1)]
        grams.append([tokens_ref[text, one] for one in at])
        home, its_set = read(grams[-1][0])
        homes.append(home)
        read_sets.append(its_set)
    if k is not None:
        key = key_ref[0][text, 0]
        for ref, value in zip(best_ref, best_of(read(key)[1], key, k), strict=True):
            ref[text] = value
    taken, made = [], []
    for step in range(most):
        fields, at = chosen(read_sets[step], grams[step], start + step, place)
        at = jnp.where(start + step < stop, at, -1)
        # Later insertions into the set see this one. An earlier one of the same entry must write the same fields,
        # because a GPU does not keep the order of two threads' writes.
        for later in range(step + 1, most):
            read_sets[later] = read_sets[later].where((place == at) & (homes[later] == homes[step]), fields)
        for earlier in range(step):
            again = (taken[earlier] == at) & (homes[earlier] == homes[step])
            made[earlier] = made[earlier].where(again, fields)
        taken.append(at)
        made.append(fields)
    zeros = jnp.zeros((pl.next_power_of_2(FIELDS),), jnp.int32)
    synchronise()  # Without it, a warp could write an entry before another has read it.
    column = jnp.arange(pl.next_power_of_2(FIELDS), dtype=jnp.int32)
    for home, at, fields in zip(homes, taken, made, strict=True):
        writes = (column < FIELDS) & (at >= 0)
        word = jnp.where(writes, at + column * size, FIELDS * size)
        value = sum((jnp.where(column == i, field, 0) for i, field in enumerate(fields)), start=zeros)
        plgpu.store(table_ref.at[text, home, word], value, mask=writes)
    done_ref[text] = jnp.maximum(inserted, stop)


def best_of(its_set: _Set, first: jax.Array, k: int) -> BestContinuation:
    """`NgramUpdate.best` of a first token in its set."""
    own = its_set.first == first
    count, last = (jnp.where(own, its_set[field], 0) for field in (COUNT, LAST))
    ahead = (count[None, :] > count[:, None]) | ((count[None, :] == count[:, None]) & (last[None, :] > last[:, None]))
    rank = jnp.sum(ahead.astype(jnp.int32), axis=1, dtype=jnp.int32)
    best = (rank == 0) & (count > 0)
    following = jnp.sum(jnp.where(best, its_set.second, 0), dtype=jnp.int32)
    through = jnp.sum(jnp.where((rank < k) & (its_set.second == following), count, 0), dtype=jnp.int32)
    return BestContinuation(following, jnp.max(count), through, jnp.sum(count, dtype=jnp.int32))


def chosen(its_set: _Set, gram: list[jax.Array], end: jax.Array, place: jax.Array) -> tuple[_Set, jax.Array]:
    """`sets.choose` of one 4-gram: the entry's new fields and its place."""
    count, last = its_set.count, its_set.last
    live = count > 0
    own = live & (its_set.first == gram[0])
    known = own
    for field, token in zip(its_set.grams, gram, strict=True):
        known &= field == token
    score = jnp.where(own, jnp.where(known, count - NONE, count), NONE)
    least = jnp.min(score)
    oldest = jnp.min(jnp.where(score == least, last, NONE))
    given_up = jnp.min(jnp.where((score == least) & (last == oldest), place, NONE))
    free, size = jnp.min(jnp.where(live, NONE, place)), jnp.sum(own.astype(jnp.int32), dtype=jnp.int32)
    grows = (size < place.shape[0] // ROWS) & (free < NONE) & (least >= 0)
    taken = jnp.where(grows, free, jnp.where(least < NONE, given_up, -1))
    grown = jnp.where(least < 0, least + NONE, 0) + 1
    return _Set(grown, end, *gram), taken
