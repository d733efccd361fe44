"""The n-gram table: 4-grams on the device, bounded by the text: first token -> three more (paper section 3.3).

The entries of one first token form its table row. A table row has at most `slots` entries; an entry counts how often a
continuation occurred and records where it ended last.

First tokens that are equal modulo the number of sets share a set of `2 * slots` entries, which new continuations take
in position order. Two rules evict continuations. They depend on the text and the table's sizes alone:

* A full table row gives up the entry with the lowest count (of these, the oldest last position) for a new continuation.
* Once a set has no empty entry, its table rows stop growing: each counts as full, and a first token without an entry
  gets none.

The second rule rarely applies. A table has 2.5 entries for every position of the text, and the frequent tokens, which
need most of the entries, have low ids in most vocabularies and so a set each. It never applies if the vocabulary has no
more ids than the table has sets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.ngram_table import ngram_update, reference
from pallas_kernels.ngram_table.sets import FIELDS, ROWS, BestContinuation
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.parallel.rules import one_device


@pytree
class NgramTable:
    """Continuations of first tokens, with the count and the latest position of each.

    Attributes:
        entries: int32 `[batch, sets, 6 * 2 * slots]`. A set (`ngram_table.sets`) is one slice, so that a lookup reads
            one and an insertion writes one; with 32 slots it has 384 words, a multiple of the 128 that TPUs store
            together.
        inserted: int32 `[batch]`. The table has processed every 4-gram that ends at a position < `inserted`.
    """

    entries: jax.Array = axes("batch", "sets", "words")
    inserted: jax.Array = axes("batch")

    @property
    def slots(self) -> int:
        """The most continuations per first token."""
        return self.entries.shape[-1] // (FIELDS * ROWS)


def sets_for(capacity: int, slots: int) -> int:
    """Number of sets of a table for texts of up to `capacity` positions, with 2.5 entries per position."""
    return -(-5 * capacity // (2 * ROWS * slots))


def empty(batch: int, capacity: int, slots: int) -> NgramTable:
    """An empty table for texts of up to `capacity` positions: 60 bytes per position, rounded up to whole sets."""
    shape = (batch, sets_for(capacity, slots), FIELDS * ROWS * slots)
    return NgramTable(jnp.zeros(shape, jnp.int32), jnp.zeros((batch,), jnp.int32))


def insert(table: NgramTable, tokens: jax.Array, eligible: jax.Array, most: int) -> NgramTable:
    """Inserts, in position order, the 4-grams that end at a position in [inserted, eligible).

    A known continuation adds 1 to its count; a new one takes an empty entry, else the entry that its table row gives
    up. The result depends on the text alone, never on how the caller splits it into calls. Each batch row advances
    independently.

    Args:
        table: the table so far; inside a jitted loop (or donated) XLA updates it in place.
        tokens: int32 `[batch, capacity]`, the text by position.
        eligible: int32 `[batch]`, number of positions that 4-grams may come from: `n - window`, may be negative.
        most: static bound on the insertions of this call, a few (`ngram_fill.fill` takes any number); later calls
            insert the rest.
    """
    return updated(table, tokens, eligible, most)[0]


def updated(
    table: NgramTable, tokens: jax.Array, eligible: jax.Array, most: int, key: jax.Array | None = None, k: int = 0
) -> tuple[NgramTable, BestContinuation | None]:
    """`insert`, and the best continuation of a key before it; None without a key. The first column of `key`, int32
    `[batch, any]`, is the key."""
    update = ngram_update if one_device() else reference.ngram_update
    done = update(table.entries, table.inserted, tokens, eligible, most=most, key=key, k=k)
    return NgramTable(done.entries, done.inserted), done.best


def lookup(table: NgramTable, first: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k most frequent continuations of each first token, ties to the most recent one.

    Args:
        table: the table.
        first: int32 `[batch, keys]`, first tokens.
        k: number of continuations; those beyond a table row's entries are empty.

    Returns:
        continuations int32 `[batch, keys, k, 3]`, counts int32 `[batch, keys, k]` in descending order (0: none), and
        totals int32 `[batch, keys]`, the sum of all counts in the table row of that first token.
    """
    return reference.lookup(table.entries, first, k)
