"""Batches of one training length from documents, shuffled by grain and resumable at any batch."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.shards import Corpus

_READ_AHEAD = 4  # batches that grain prepares ahead


class Batch(NamedTuple):
    """Rows of packed pieces; the padding at a row's end is 0 in all three arrays.

    Args:
      tokens: int32 [batch, length] (one row: [length]).
      positions: shaped like `tokens`, the index within the piece, plus the row's jump after it if it has one.
      segments: shaped like `tokens`, 1, 2, ... over the pieces of a row.
    """

    tokens: Any  # a NumPy array here, a JAX array within a step
    positions: Any
    segments: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """The pieces of documents that make up each row; they are the same in every epoch.

    Args:
      corpus: the documents.
      length: tokens of a row.
      piece_starts: int64 [pieces], the start of each piece in the sequence of all the corpus's tokens; ordered by row,
        then by document.
      piece_lengths: int64 [pieces], at most `length`.
      row_pieces: int64 [rows + 1], the first piece of each row.
      spanning: rows 0..spanning-1 are one piece of `length` tokens each.
      dropped_tokens: tokens of the documents' ends shorter than the least length.
    """

    corpus: Corpus
    length: int
    piece_starts: np.ndarray
    piece_lengths: np.ndarray
    row_pieces: np.ndarray
    spanning: int
    dropped_tokens: int

    @property
    def rows(self) -> int:
        return len(self.row_pieces) - 1

    @property
    def tokens(self) -> int:
        """Tokens that an epoch reads, without padding."""
        return int(self.piece_lengths.sum())

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch; each epoch leaves out the last rows of its order, which differ from epoch to epoch."""
        return self.rows // batch_size

    def row(self, index: int) -> Batch:
        """The row `index`, each array int32 [length]."""
        tokens, positions, segments = (np.zeros(self.length, np.int32) for _ in range(3))
        filled = 0
        for number, piece in enumerate(range(self.row_pieces[index], self.row_pieces[index + 1]), 1):
            start, size = int(self.piece_starts[piece]), int(self.piece_lengths[piece])
            place = slice(filled, filled + size)
            tokens[place] = self.corpus.read(start, start + size)
            positions[place] = np.arange(size)
            segments[place] = number
            filled += size
        return Batch(tokens, positions, segments)


def pack(corpus: Corpus, *, length: int, min_tokens: int, documents: range | None = None) -> Packing:
    """Cuts documents into pieces of at most `length` tokens and packs the pieces into rows; no piece crosses documents.

    A piece of `length` tokens fills a row. The ends of documents go, longest first, to the row with the least remaining
    space that suffices (best-fit decreasing).

    Args:
      corpus: the documents.
      length: tokens of a row.
      min_tokens: least tokens of a piece; heads + 2 is the least from which every head learns something.
      documents: numbers of the documents to pack; None for all.

    Raises:
      UserError: `length` is below `min_tokens`, or every document is shorter than `min_tokens`.
    """
    if length < min_tokens:
        raise UserError(
            f"max_length {length} is too short: these heads need at least {min_tokens} tokens",
            arguments=("max_length",),
        )
    chosen = np.arange(corpus.documents) if documents is None else np.asarray(documents, np.int64)
    starts, sizes = corpus.offsets[chosen], corpus.offsets[chosen + 1] - corpus.offsets[chosen]
    whole, ends = np.divmod(sizes, length)
    spanning = int(whole.sum())
    index_in_document = np.arange(spanning) - np.repeat(np.cumsum(whole) - whole, whole)
    whole_starts = np.repeat(starts, whole) + index_in_document * length
    kept = ends >= min_tokens
    end_starts, end_sizes = (starts + whole * length)[kept], ends[kept]
    if not spanning and not end_sizes.size:
        raise UserError(
            f"every document is shorter than {min_tokens} tokens, the least that these heads can learn from "
            f"(the longest has {int(sizes.max(initial=0))})"
        )
    end_rows = spanning + _best_fit(end_sizes, length, min_tokens)
    rows = np.concatenate([np.arange(spanning), end_rows])
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    return Packing(
        corpus=corpus,
        length=length,
        piece_starts=np.concatenate([whole_starts, end_starts])[order],
        piece_lengths=np.concatenate([np.full(spanning, length), end_sizes])[order],
        row_pieces=np.concatenate([[0], np.cumsum(counts)]),
        spanning=spanning,
        dropped_tokens=int(ends[~kept].sum()),
    )


def _best_fit(sizes: np.ndarray, length: int, min_tokens: int) -> np.ndarray:
    """The row of each piece, counted from 0: int64 [pieces]."""
    rows = np.zeros(len(sizes), np.int64)
    open_rows: dict[int, list[int]] = {}  # rows by their remaining space
    rooms: list[int] = []  # the keys of open_rows, ascending
    opened = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            row, room = opened, length
            opened += 1
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        rows[piece] = row
        left = room - size
        if left < min_tokens:
            continue
        if left not in open_rows:
            bisect.insort(rooms, left)
            open_rows[left] = []
        open_rows[left].append(row)
    return rows


def batches(
    packing: Packing,
    *,
    batch_size: int,
    seed: int,
    epochs: int | None,
    skip_share: float = 0.0,
    max_positions: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Batches of `batch_size / process_count` rows, in an order that depends only on seed and epoch.

    The iterator's `get_state()` is a small dictionary; `set_state` with it, in any process, continues with the same
    batches that would have followed. The batches number k of all processes together are batch number k of one process.

    Args:
      packing: the rows.
      batch_size: rows over all processes.
      seed: seed of the order and of the jumps.
      epochs: number of epochs; None never ends.
      skip_share: the share of all rows with one jump in their positions, at a random index, by a log-uniform number of
        positions (positional skip-wise training, Zhu et al. 2023), so that far positions occur; the text remains
        contiguous. Only rows of one spanning piece jump; if they are fewer than the share, all of them do.
      max_positions: positions of the model; all positions of a row are below it.
      process_index, process_count: the number of this process, and how many processes share each batch.

    Raises:
      UserError: fewer rows than a batch, a batch that the processes cannot share equally, or a skip that no row or no
        position allows.
    """
    if batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} cannot be shared equally by {process_count} processes", arguments=("batch_size",)
        )
    steps = packing.steps_per_epoch(batch_size)
    if not steps:
        raise UserError(
            f"the data fill {packing.rows} rows of {packing.length} tokens, not one batch of {batch_size}; give more "
            "text, a smaller batch_size or a smaller max_length",
            arguments=("batch_size", "max_length"),
        )
    rows = grain.MapDataset.source(_Rows(packing))
    if skip_share:
        rows = rows.map_with_index(_Skip(packing, seed, skip_share, max_positions))
    # Without this hash of the seed, neighbouring seeds share epochs, because grain shuffles epoch e with seed + e.
    shuffled = rows.shuffle(seed=int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]))
    mine = shuffled[: steps * batch_size][process_index::process_count]
    batched = mine.batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack).repeat(epochs)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
    return iter(batched.to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class _Rows:
    packing: Packing

    def __len__(self) -> int:
        return self.packing.rows

    def __getitem__(self, index: int) -> Batch:
        return self.packing.row(index)


class _Skip(grain.transforms.MapWithIndex):
    """Adds a jump to the positions of some spanning rows; the draws depend on (seed, epoch, row)."""

    def __init__(self, packing: Packing, seed: int, share: float, max_positions: int | None):
        if not 0 <= share <= 1:
            raise UserError(f"the share of rows whose positions jump is {share}; it has to be within 0..1")
        if max_positions is None or max_positions <= packing.length:
            raise UserError(
                f"positions cannot jump: the model has {max_positions}, rows of {packing.length} tokens fill them all"
            )
        if not packing.spanning:
            raise UserError(f"positions cannot jump: no document has {packing.length} tokens, the length of a row")
        self._packing = packing
        self._seed = seed
        self._probability = share * packing.rows / packing.spanning
        self._longest = max_positions - packing.length

    def map_with_index(self, index: int, element: Batch) -> Batch:
        epoch, row = divmod(index, self._packing.rows)
        if row >= self._packing.spanning:
            return element
        # A Generator may draw other numbers in another NumPy version; NumPy guarantees the bits of SeedSequence.
        draws = np.random.SeedSequence([self._seed, 1, epoch, row]).generate_state(3) / 2.0**32
        if draws[0] >= self._probability:
            return element
        at = 1 + int(draws[1] * (self._packing.length - 1))
        jump = min(int((self._longest + 1) ** draws[2]), self._longest)
        positions = element.positions.copy()
        positions[at:] += jump
        return element._replace(positions=positions)


def _stack(rows: Sequence[Batch]) -> Batch:
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
