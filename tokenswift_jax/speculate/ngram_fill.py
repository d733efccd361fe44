"""Fills the n-gram table from a text of any length: equal to insertion position by position, in far fewer steps.

An insertion reads and writes one set, so one step can insert 4-grams of different sets. `fill` processes the text in
blocks. It sorts a block's 4-grams by set, joins equal neighbours, and inserts the first of every set in one step, then
the second of every set, and so on. A block takes about as many steps as its most frequent first token has occurrences.
A few 4-grams are inserted sooner one after the other (`catch_up`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ngram_table.sets import LENGTH, choose, grams_at, read, write
from tokenswift_jax.speculate.ngram import NgramTable, insert

_LAST = 2**31 - 1
# Two cores take 0.6 ms to fill from 8 or from 200 positions; to insert 4 at a time takes 0.1 ms for 40 positions and
# 0.2 ms for 200.
_FEW, _AT_A_TIME = 512, 4


def catch_up(table: NgramTable, tokens: jax.Array, eligible: jax.Array) -> NgramTable:
    """`fill`, but where no row lacks more than a few positions, it inserts them one after the other."""
    few = (eligible - table.inserted).max() <= _FEW

    def behind(table: NgramTable) -> jax.Array:
        return few & (table.inserted < eligible).any()

    table = lax.while_loop(behind, lambda table: insert(table, tokens, eligible, _AT_A_TIME), table)
    return fill(table, tokens, eligible)


def fill(
    table: NgramTable,
    tokens: jax.Array,
    eligible: jax.Array,
    first: jax.Array | int = 0,
    *,
    block: int = 4096,
    tile: int | None = None,
    steps: int | None = None,
) -> NgramTable:
    """Inserts, in position order, any number of 4-grams: those that end at a position in [inserted, eligible).

    The result is, bit for bit, the table of `ngram.insert`, for all values of the sizes below.

    Args:
        table: the table so far; XLA updates it in place if it is donated.
        tokens: int32 `[batch, capacity]`, the text by position.
        eligible: int32 `[batch]`, number of positions that 4-grams may come from, may be negative.
        first: int32 `[batch]`, the position that the table records for `tokens[:, 0]`.
        block: positions per block.
        tile: the most 4-grams that one step inserts; None: few on a CPU, where each 4-gram costs time, and many on
            accelerators, where each step does.
        steps: steps per turn; None: 1 on a CPU, 32 on accelerators. A GPU waits for the host at every turn of a loop
            of unknown length, and never in a loop of known length.
    """
    on_cpu = jax.default_backend() == "cpu"
    tile, steps = tile or (8 if on_cpu else 256), steps or (1 if on_cpu else 32)
    width = min(block, tokens.shape[1])

    def one_block(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        entries, start = carry
        queue, number = _queue(tokens, start, eligible, width, entries.shape[1])
        return _insert_queue(entries, tokens, queue, number, places, tile, steps), start + width

    places = jnp.broadcast_to(jnp.asarray(first, jnp.int32), eligible.shape)[:, None]
    start = jnp.maximum(table.inserted, LENGTH - 1)
    entries, _ = lax.while_loop(lambda carry: (carry[1] < eligible).any(), one_block, (table.entries, start))
    return NgramTable(entries, jnp.maximum(table.inserted, eligible))


def _queue(tokens: jax.Array, start: jax.Array, stop: jax.Array, width: int, sets: int) -> tuple[jax.Array, jax.Array]:
    """The 4-grams that end at positions start .. min(start + width, stop) - 1, in the order of their insertion.

    Returns:
        int32 `[batch, width, 3]`: rank, the number of earlier 4-grams of the same set; position of the last token at
        the newest occurrence; and number of joined occurrences. Ranks ascend; 4-grams of one rank have different sets.
        int32 `[batch]`: the number of 4-grams.
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
    entries: jax.Array,
    tokens: jax.Array,
    queue: jax.Array,
    number: jax.Array,
    first: jax.Array,
    tile: int,
    steps: int,
) -> jax.Array:
    """Inserts a queue of `_queue`, with positions from `first` int32 `[batch, 1]` on; each step inserts the next
    4-grams of one rank."""
    batch = jnp.arange(queue.shape[0], dtype=jnp.int32)[:, None]
    ahead = jnp.arange(min(tile, queue.shape[1]), dtype=jnp.int32)

    def step(_: jax.Array | int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        entries, done = carry
        at = done[:, None] + ahead[None, :]
        rank, end, weight = jnp.moveaxis(queue.at[batch, at].get(mode="clip"), -1, 0)
        together = (rank == rank[:, :1]) & (at < number[:, None])
        grams = grams_at(tokens, end)
        fields, place = choose(read(entries, grams[..., 0]), grams, end + first, weight)
        entries = write(entries, grams[..., 0], fields, jnp.where(together, place, -1))
        return entries, done + jnp.sum(together, axis=1, dtype=jnp.int32)

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return lax.fori_loop(0, steps, step, carry)

    return lax.while_loop(lambda carry: (carry[1] < number).any(), turn, (entries, jnp.zeros_like(number)))[0]
