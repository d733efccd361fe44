"""Filling the n-gram table from a long text: what inserting position by position gives, in far fewer steps.

An insertion reads and writes one set, so 4-grams of different sets can be inserted together. `fill` takes the text in
blocks. It sorts a block's 4-grams by set, joins equal neighbours, and inserts the first of every set together, then the
second of every set, and so on. A block takes about as many steps as its most frequent first token has occurrences.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.ngram_sets import LENGTH, choose, grams_at, read, write

_LAST = 2**31 - 1


def fill(
    table: NgramTable,
    tokens: jax.Array,
    eligible: jax.Array,
    *,
    block: int = 4096,
    tile: int | None = None,
    steps: int | None = None,
) -> NgramTable:
    """Inserts, in position order, the 4-grams that end at a position in [inserted, eligible), however many.

    The table afterwards is, bit for bit, that of `ngram.insert`, whatever the sizes below.

    Args:
        table: the table so far; donated, XLA updates it in place.
        tokens: int32 `[batch, capacity]`, the text by position.
        eligible: int32 `[batch]`, positions from which 4-grams may be taken, may be negative.
        block: positions of a block.
        tile: 4-grams inserted in a step at most; None: few on a CPU, which pays for each, and many on accelerators,
            which pay for the step.
        steps: steps of a turn; None: 1 on a CPU, 32 on accelerators. GPUs wait for the host at every turn of a loop of
            unknown length, and at none of one whose length is known.
    """
    on_cpu = jax.default_backend() == "cpu"
    tile, steps = tile or (8 if on_cpu else 256), steps or (1 if on_cpu else 32)
    width = min(block, tokens.shape[1])

    def one_block(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        entries, start = carry
        queue, number = _queue(tokens, start, eligible, width, entries.shape[1])
        return _insert_queue(entries, tokens, queue, number, tile, steps), start + width

    start = jnp.maximum(table.inserted, LENGTH - 1)
    entries, _ = lax.while_loop(lambda carry: (carry[1] < eligible).any(), one_block, (table.entries, start))
    return NgramTable(entries, jnp.maximum(table.inserted, eligible))


def _queue(tokens: jax.Array, start: jax.Array, stop: jax.Array, width: int, sets: int) -> tuple[jax.Array, jax.Array]:
    """The 4-grams that end at positions start .. min(start + width, stop) - 1, in the order of their insertion.

    Returns:
        int32 `[batch, width, 3]`: rank, how many 4-grams of the same set come before; position of the last token at the
        newest occurrence; and how many occurrences in a row. Ranks ascend; within one, sets differ.
        int32 `[batch]`: how many there are.
    """
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (start.shape[0], width))
    ends = start[:, None] + place
    first = grams_at(tokens, ends)[..., 0]
    home = jnp.where(ends < stop[:, None], first % sets, sets)
    home, ends = lax.sort((home, ends), dimension=1, is_stable=True, num_keys=1)
    grams = grams_at(tokens, ends)
    begins = jnp.pad(home[:, 1:] != home[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    differs = jnp.pad((grams[:, 1:] != grams[:, :-1]).any(axis=-1), ((0, 0), (1, 0)), constant_values=True)
    absent = home == sets
    head = (begins | differs) & ~absent
    # A run of one 4-gram ends where the next begins.
    edge = jnp.where(head | absent, place, width)
    following = jnp.pad(lax.cummin(edge, axis=1, reverse=True)[:, 1:], ((0, 0), (0, 1)), constant_values=width)
    end = jnp.take_along_axis(ends, following - 1, axis=1)
    before = jnp.cumsum(head, axis=1, dtype=jnp.int32) - head.astype(jnp.int32)
    rank = before - lax.cummax(jnp.where(begins, before, 0), axis=1)
    rank = jnp.where(head, rank, _LAST)
    queue = lax.sort((rank, end, following - place), dimension=1, is_stable=True, num_keys=1)
    return jnp.stack(queue, axis=-1), jnp.sum(head, axis=1, dtype=jnp.int32)


def _insert_queue(
    entries: jax.Array, tokens: jax.Array, queue: jax.Array, number: jax.Array, tile: int, steps: int
) -> jax.Array:
    """Inserts a queue of `_queue`: in each step the next ones of one rank."""
    batch = jnp.arange(queue.shape[0], dtype=jnp.int32)[:, None]
    ahead = jnp.arange(min(tile, queue.shape[1]), dtype=jnp.int32)

    def step(_: jax.Array | int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        entries, done = carry
        at = done[:, None] + ahead[None, :]
        rank, end, weight = jnp.moveaxis(queue.at[batch, at].get(mode="clip"), -1, 0)
        together = (rank == rank[:, :1]) & (at < number[:, None])
        grams = grams_at(tokens, end)
        fields, place = choose(read(entries, grams[..., 0]), grams, end, weight)
        entries = write(entries, grams[..., 0], fields, jnp.where(together, place, -1))
        return entries, done + jnp.sum(together, axis=1, dtype=jnp.int32)

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return lax.fori_loop(0, steps, step, carry)

    return lax.while_loop(lambda carry: (carry[1] < number).any(), turn, (entries, jnp.zeros_like(number)))[0]
