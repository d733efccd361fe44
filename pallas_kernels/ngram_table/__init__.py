"""The n-gram table of a text: 4-grams are inserted into its sets, and a first token's best continuation is read."""

from __future__ import annotations

import jax

from pallas_kernels.implementation import choose
from pallas_kernels.ngram_table import reference
from pallas_kernels.ngram_table.sets import FIELDS, NgramUpdate

__all__ = ["NgramUpdate", "ngram_update"]

# Pairs of entries that the kernel compares at a time, at most, in registers.
_MOST_ENTRIES = 128


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
    """Reads the best continuation of a first token, then inserts, in position order, the 4-grams that end at a position
    in [inserted, eligible).

    On a GPU one kernel does both and writes to the table that it is given; XLA would launch 12 for five 4-grams.

    Args:
      entries: int32 [batch, sets, 6 * entries of a set], the table (`sets`).
      inserted: int32 [batch]; the table has processed every 4-gram that ends at a position before it.
      tokens: int32 [batch, capacity], the text by position.
      eligible: int32 [batch], number of positions that 4-grams may come from, may be negative.
      most: static bound on the insertions of this call, a few; later calls insert the rest.
      key: int32 [batch, any], whose first column is the first token to look up; None for none. With a column of its
        own, XLA would launch a kernel to slice it.
      k: static, the continuations that the lookup counts; 1 at least with a key.
    """
    # Triton's arrays have powers of two as sizes.
    size = entries.shape[-1] // FIELDS
    fits = size & (size - 1) == 0 and size <= _MOST_ENTRIES
    if choose("ngram_table", ("reference", "gpu") if fits else ("reference",)) == "gpu":
        # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
        from pallas_kernels.ngram_table import gpu

        return gpu.ngram_update(entries, inserted, tokens, eligible, most=most, key=key, k=k)
    return reference.ngram_update(entries, inserted, tokens, eligible, most=most, key=key, k=k)
