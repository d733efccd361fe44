"""What is known about each emitted token; every statistic is recomputed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SAMPLED, DRAFTED, NGRAM = 0, 1, 2  # drawn by the target; accepted draft; accepted draft that only the table proposed
PREFILL_OFFSET = -1
COLUMNS = ("token_ids", "sources", "offsets", "offered", "seconds")


class Committed(Protocol):
    """The columns of `tokenswift_jax.engine.run.Committed` that are kept."""

    @property
    def token_ids(self) -> np.ndarray: ...
    @property
    def sources(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def offered(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Records:
    """Emitted tokens of one row, in order; all columns have one entry a token.

    Attributes:
      token_ids: int32 [n].
      sources: int32 [n]: SAMPLED, DRAFTED or NGRAM.
      offsets: int32 [n]: index within the iteration; PREFILL_OFFSET for the token that prefill gave.
      offered: int32 [n]: tree depth that the token's iteration offered.
      seconds: float64 [n]: decode time, a chunk's time shared equally by its tokens.
    """

    token_ids: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    offered: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    def cut(self, count: int) -> Records:
        """The first `count` tokens, which then bear the whole time: it was spent."""
        kept = self.seconds[:count]
        if 0 < len(kept) < len(self):
            kept = kept * (self.seconds.sum() / kept.sum()) if kept.sum() else kept
        return Records(self.token_ids[:count], self.sources[:count], self.offsets[:count], self.offered[:count], kept)


def from_committed(committed: Committed, seconds: float) -> Records:
    """Records of one chunk of one row that took `seconds`."""
    count = len(committed.token_ids)
    return from_columns(
        committed.token_ids, committed.sources, committed.offsets, committed.offered, [seconds / max(count, 1)] * count
    )


def from_columns(
    token_ids: Sequence[int] | np.ndarray,
    sources: Sequence[int] | np.ndarray,
    offsets: Sequence[int] | np.ndarray,
    offered: Sequence[int] | np.ndarray,
    seconds: Sequence[float] | np.ndarray,
) -> Records:
    """Records of columns of one length."""
    return Records(
        token_ids=np.asarray(token_ids, np.int32),
        sources=np.asarray(sources, np.int32),
        offsets=np.asarray(offsets, np.int32),
        offered=np.asarray(offered, np.int32),
        seconds=np.asarray(seconds, np.float64),
    )


def concatenate(parts: Sequence[Records]) -> Records:
    """One row's records from those of its chunks."""
    if not parts:
        return from_columns([], [], [], [], [])
    return Records(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})
