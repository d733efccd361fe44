"""A bounded table of 4-grams on the device: first token -> continuations of three tokens (paper section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.arrays import axes, pytree

LENGTH = 4
# A continuation's three tokens take two words: with 32 slots a line is the 128 words that TPUs lay out together.
_FIELDS = 4
_LOW = 21  # bits of a word that hold the first (second) token; above them, half of the third's
_HALF = 10
MAX_VOCAB = 2 ** (2 * _HALF)
_TURN = 32  # insertions of a turn


@pytree
class NgramTable:
    """Continuations of every first token, with how often and how lately each was seen.

    Attributes:
        entries: int32 `[batch, vocab, 4 * slots]`. One line holds all that is known of a first token, so that a lookup
            is one slice and an insertion writes one line in place: `slots` counts (0: empty), `slots` positions (of the
            4-gram's last token at its newest occurrence), then `slots` first and `slots` second words of continuations.
        inserted: int32 `[batch]`. Every 4-gram that ends at a position < `inserted` is in (or was evicted).
    """

    entries: jax.Array = axes("batch", "lines", "words")
    inserted: jax.Array = axes("batch")

    @property
    def slots(self) -> int:
        """Continuations kept per first token."""
        return self.entries.shape[-1] // _FIELDS


def empty(batch: int, vocab: int, slots: int) -> NgramTable:
    """A table without 4-grams; 16 * batch * vocab * slots bytes.

    Raises:
      ValueError: the vocabulary exceeds MAX_VOCAB.
    """
    if vocab > MAX_VOCAB:
        raise ValueError(f"n-grams of {vocab:,} ids do not fit the table, which takes {MAX_VOCAB:,}")
    return NgramTable(jnp.zeros((batch, vocab, _FIELDS * slots), jnp.int32), jnp.zeros((batch,), jnp.int32))


def table_bytes(batch: int, vocab: int, slots: int) -> int:
    """Bytes of a table."""
    return 4 * _FIELDS * batch * vocab * slots


def insert(table: NgramTable, tokens: jax.Array, eligible: jax.Array, most: int | None = None) -> NgramTable:
    """Inserts, in position order, the 4-grams that end at a position in [inserted, eligible); O(slots) each.

    A known continuation gains a count; a new one takes an empty slot, else evicts the lowest count, oldest first. The
    result depends on the text alone, never on how it was cut into calls. Each row of a batch advances by itself.

    Args:
        table: the table so far; inside a jitted loop (or donated) it is updated in place.
        tokens: int32 `[batch, capacity]`, the text by position.
        eligible: int32 `[batch]`, positions from which 4-grams may be taken: `n - window`, may be negative.
        most: static bound on the insertions of this call; the rest follow in later calls. None: no bound.
    """
    start = jnp.maximum(table.inserted, LENGTH - 1)
    stop = eligible if most is None else jnp.minimum(eligible, start + most)

    def body(step: jax.Array | int, entries: jax.Array) -> jax.Array:
        end = start + jnp.int32(step)
        return _insert_one(entries, tokens, end, end < stop)

    if most is None:
        # GPUs wait for the host at every turn of a loop of unknown length, and at none of one whose length is known.
        def some(turn: jax.Array, entries: jax.Array) -> jax.Array:
            return lax.fori_loop(0, _TURN, lambda step, entries: body(turn * _TURN + step, entries), entries)

        turns = (jnp.maximum(jnp.max(stop - start), 0) + (_TURN - 1)) // _TURN
        entries = lax.fori_loop(jnp.int32(0), turns, some, table.entries)
    else:
        # Unrolled: accelerators wait for the host at every turn of a loop, and an idle step costs next to nothing.
        entries = table.entries
        for step in range(most):
            entries = body(step, entries)
    return NgramTable(entries, jnp.maximum(table.inserted, stop))


def lookup(table: NgramTable, first: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k most frequent continuations of each first token, ties to the one seen last.

    Args:
        table: the table.
        first: int32 `[batch, keys]`, first tokens.
        k: how many; slots beyond the table's are empty.

    Returns:
        continuations int32 `[batch, keys, k, 3]`, counts int32 `[batch, keys, k]` in descending order (0: none), and
        totals int32 `[batch, keys]`, the sum of all the counts kept for that first token.
    """
    batch = jnp.arange(first.shape[0], dtype=jnp.int32)[:, None]
    line = table.entries.at[batch, first].get(mode="clip")
    fields = line.reshape(*first.shape, _FIELDS, table.slots)
    count, last = fields[..., 0, :], fields[..., 1, :]
    # Ranks by pairwise comparison: for 32 slots this is one small fused loop where a sort is many.
    slot = jnp.arange(table.slots, dtype=jnp.int32)
    earlier = jnp.expand_dims(slot[None, :] < slot[:, None], range(first.ndim))
    mine, others = (count[..., :, None], last[..., :, None]), (count[..., None, :], last[..., None, :])
    tied = others[0] == mine[0]
    ahead = (others[0] > mine[0]) | (tied & ((others[1] > mine[1]) | ((others[1] == mine[1]) & earlier)))
    rank = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
    chosen = rank[..., None, :] == jnp.expand_dims(jnp.arange(k, dtype=jnp.int32), (*range(first.ndim), -1))
    picked = jnp.sum(jnp.where(chosen[..., None, :], fields[..., None, :, :], 0), axis=-1, dtype=jnp.int32)
    return _tokens(picked[..., 2], picked[..., 3]), picked[..., 0], jnp.sum(count, axis=-1, dtype=jnp.int32)


def _insert_one(entries: jax.Array, tokens: jax.Array, end: jax.Array, active: jax.Array) -> jax.Array:
    """Inserts into each row of the batch the 4-gram that ends at position `end` where `active`."""
    slots = entries.shape[-1] // _FIELDS
    batch = jnp.arange(entries.shape[0], dtype=jnp.int32)
    window = end[:, None] + jnp.arange(1 - LENGTH, 1, dtype=jnp.int32)[None, :]
    gram = tokens.at[batch[:, None], window].get(mode="clip")
    line = entries.at[batch, gram[:, 0]].get(mode="clip")
    count, last, first_words, second_words = jnp.split(line, _FIELDS, axis=-1)
    first, second = _words(gram[:, 1:])
    known = (count > 0) & (first_words == first[:, None]) & (second_words == second[:, None])
    # A known continuation sorts before everything, then empty slots (count 0), then the lowest count, oldest first.
    slot = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None, :], count.shape)
    least, _, place = lax.reduce(
        (jnp.where(known, -1, count), last, slot), (jnp.int32(2**31 - 1),) * 3, _smaller, dimensions=(1,)
    )
    field = jnp.arange(_FIELDS * slots, dtype=jnp.int32)[None, :]
    grown = jnp.where((least < 0)[:, None], line + 1, 1)
    value = jnp.where(field < slots, grown, end[:, None])
    value = jnp.where(field >= 2 * slots, first[:, None], value)
    value = jnp.where(field >= 3 * slots, second[:, None], value)
    line = jnp.where((field % slots == place[:, None]) & active[:, None], value, line)
    for row in range(entries.shape[0]):
        entries = lax.dynamic_update_slice(entries, line[row, None, None], (jnp.int32(row), gram[row, 0], jnp.int32(0)))
    return entries


def _words(continuation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two words of each continuation, int32 [..., 3] -> [...] each; neither is negative."""
    first, second, third = continuation[..., 0], continuation[..., 1], continuation[..., 2]
    return first | (third & (2**_HALF - 1)) << _LOW, second | (third >> _HALF) << _LOW


def _tokens(first: jax.Array, second: jax.Array) -> jax.Array:
    """The continuation of two words, int32 [...] each -> [..., 3]."""
    third = (first >> _LOW) | (second >> _LOW) << _HALF
    low = 2**_LOW - 1
    return jnp.stack([first & low, second & low, third], axis=-1)


def _smaller(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The lexicographically smaller of two (count, last, slot) triples."""
    first = (a[0] < b[0]) | ((a[0] == b[0]) & ((a[1] < b[1]) | ((a[1] == b[1]) & (a[2] < b[2]))))
    return tuple(jnp.where(first, x, y) for x, y in zip(a, b, strict=True))
