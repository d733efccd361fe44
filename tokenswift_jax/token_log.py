"""The log of emitted tokens, from which every statistic is recomputed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SAMPLED, DRAFTED, NGRAM = 0, 1, 2  # drawn by the target; accepted draft; accepted draft that only n-grams proposed
PREFILL_OFFSET = -1
RECORD = ("token_ids", "sources", "offsets", "offered")  # the columns that a step writes, in its order
COLUMNS = (*RECORD, "seconds")


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of one emitted token.

    Attributes:
      token_id: the token.
      logprob: the natural logarithm of its probability.
      top: the likeliest tokens there, likeliest first: pairs of id and log-probability, without the tokens whose
        probability the filters made 0.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class LogprobLog:
    """Log-probabilities of emitted tokens, one entry per token.

    Attributes:
      values: float32 [n], each token's own.
      top_ids, top_values: int32 and float32 [n, top], the likeliest tokens and their log-probabilities, in descending
        order.
    """

    values: np.ndarray
    top_ids: np.ndarray
    top_values: np.ndarray

    def of(self, token_ids: Sequence[int]) -> list[TokenLogprob]:
        """The log-probabilities of `token_ids`, one entry per token."""
        tops = zip(self.top_ids.tolist(), self.top_values.tolist(), strict=True)
        pairs = [[p for p in zip(ids, values, strict=True) if p[1] > -math.inf] for ids, values in tops]
        return [TokenLogprob(*entry) for entry in zip(token_ids, self.values.tolist(), pairs, strict=True)]

    def at(self, where: int | slice) -> LogprobLog:
        """The entries at an index of the first dimension."""
        return LogprobLog(self.values[where], self.top_ids[where], self.top_values[where])

    def cut(self, count: int) -> LogprobLog:
        """The entries of the first `count` tokens."""
        return self.at(slice(count))


@dataclass(frozen=True)
class TokenLog:
    """Emitted tokens of one row, in order; all columns have one entry per token.

    Attributes:
      token_ids: int32 [n].
      sources: int32 [n]: 0 (SAMPLED) drawn by the target, 1 (DRAFTED) an accepted draft, 2 (NGRAM) an accepted draft
        that only the n-gram table proposed.
      offsets: int32 [n]: index within the iteration; -1 (PREFILL_OFFSET) for the token of the prefill.
      offered: int32 [n]: tree depth that the token's iteration offered, 0 in plain decoding.
      seconds: float64 [n]: decode time; the tokens of a chunk share its time equally.
      logprobs: log-probabilities of the tokens; None where none were asked for.
    """

    token_ids: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    offered: np.ndarray
    seconds: np.ndarray
    logprobs: LogprobLog | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def part(self, start: int, end: int) -> TokenLog:
        """The tokens from `start` to `end`."""
        columns = {name: getattr(self, name)[start:end] for name in COLUMNS}
        return TokenLog(**columns, logprobs=None if self.logprobs is None else self.logprobs.at(slice(start, end)))

    def cut(self, count: int) -> TokenLog:
        """The first `count` tokens, with the time of all tokens, because it was spent."""
        kept = self.seconds[:count]
        if 0 < len(kept) < len(self):
            kept = kept * (self.seconds.sum() / kept.sum()) if kept.sum() else kept
        return TokenLog(
            self.token_ids[:count],
            self.sources[:count],
            self.offsets[:count],
            self.offered[:count],
            kept,
            None if self.logprobs is None else self.logprobs.cut(count),
        )

    def by_window(self, size: int) -> list[dict[str, Any]]:
        """Windows of `size` tokens after those of prefill, the last one shorter.

        Each has `tokens`, `ms_per_token` (5 digits) and `tokens_per_iteration`: tokens over the iterations that began
        in it, None where none did.
        """
        decoded = self.offsets != PREFILL_OFFSET
        seconds, starts = self.seconds[decoded], self.offsets[decoded] == 0
        windows = []
        for begin in range(0, len(seconds), size):
            part, iterations = seconds[begin : begin + size], int(starts[begin : begin + size].sum())
            rate = float(f"{len(part) / iterations:.5g}") if iterations else None
            taken = float(f"{1e3 * float(part.mean()):.5g}")
            windows.append({"tokens": len(part), "ms_per_token": taken, "tokens_per_iteration": rate})
        return windows


def from_records(
    records: np.ndarray, seconds: float, *, prefilled: bool = False, logprobs: LogprobLog | None = None
) -> TokenLog:
    """The log of one chunk of one row, from records int32 [n, len(RECORD)] that a step wrote in `seconds`."""
    count = len(records)
    token_ids, sources, offsets, offered = np.asarray(records, np.int32).reshape(count, len(RECORD)).T
    if prefilled:
        offsets = np.full(count, PREFILL_OFFSET, np.int32)
    return TokenLog(token_ids, sources, offsets, offered, np.full(count, seconds / max(count, 1)), logprobs)


def from_columns(
    token_ids: Sequence[int] | np.ndarray,
    sources: Sequence[int] | np.ndarray,
    offsets: Sequence[int] | np.ndarray,
    offered: Sequence[int] | np.ndarray,
    seconds: Sequence[float] | np.ndarray,
) -> TokenLog:
    """The log of columns of equal length."""
    records = [np.asarray(column, np.int32) for column in (token_ids, sources, offsets, offered)]
    return TokenLog(*records, seconds=np.asarray(seconds, np.float64))


def concatenate(parts: Sequence[TokenLog]) -> TokenLog:
    """The log of one row from the logs of its chunks."""
    if not parts:
        return from_columns([], [], [], [], [])
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return TokenLog(**columns, logprobs=concatenate_logprobs([part.logprobs for part in parts if len(part)]))


def concatenate_logprobs(parts: Sequence[LogprobLog | None]) -> LogprobLog | None:
    """The log-probabilities of consecutive tokens; None where some are unknown."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return LogprobLog(
        *[np.concatenate([getattr(p, name) for p in known]) for name in ("values", "top_ids", "top_values")]
    )
