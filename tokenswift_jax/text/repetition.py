"""The repetition guard: it finds the token at which a text has begun to repeat itself exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST_PERIOD = 128  # tokens
COPIES, TOKENS = 3, 48  # a loop has at least so many copies of its period, and at least so many tokens
_SLICE = 512  # tokens compared at once: with every period that takes 64 K comparisons
_PERIODS = np.arange(1, LONGEST_PERIOD + 1)
# A text of n tokens has period p if n - p of them equal the token p places before.
_NEEDED = np.maximum(COPIES * _PERIODS, TOKENS) - _PERIODS
_BEFORE = -1  # stands for the places before the first token, and equals no token


@dataclass(frozen=True)
class Loop:
    """A place where a text repeats itself.

    Attributes:
      start: number of tokens before the first copy.
      period: tokens of one copy.
      end: number of tokens of the text when the loop was long enough.
    """

    start: int
    period: int
    end: int


class RepetitionGuard:
    """Finds exact cycles in the emitted tokens of one text, however they are cut into chunks.

    A text loops once its newest max(3 p, 48) tokens have a period p from 1 to 128; the smallest p counts. After that
    the guard is silent until a token breaks the loop.

    Attributes:
      seen: the tokens read so far.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._newest = np.full(LONGEST_PERIOD, _BEFORE, np.int64)
        self._runs = np.zeros(LONGEST_PERIOD, np.int64)  # by period: the newest tokens that equal the one before
        self._known: int | None = None  # the period of a loop that has been found and goes on

    def scan(self, token_ids: Sequence[int] | np.ndarray) -> Loop | None:
        """Reads tokens up to the first one that completes a loop, which it returns; None: it has read all of them."""
        ids = np.asarray(token_ids, np.int64)
        for begin in range(0, len(ids), _SLICE):
            found = self._read(ids[begin : begin + _SLICE])
            if found is not None:
                return found
        return None

    def _read(self, ids: np.ndarray) -> Loop | None:
        text = np.concatenate([self._newest, ids])
        before = np.lib.stride_tricks.sliding_window_view(text[:-1], LONGEST_PERIOD)[:, ::-1]  # [token, period]
        equal = before == ids[:, None]
        rows = np.arange(1, len(ids) + 1)[:, None]
        unequal = np.maximum.accumulate(np.where(equal, 0, rows), axis=0)  # the last row that breaks the run, from 1
        runs = rows - unequal + np.where(unequal, 0, self._runs)
        complete = runs >= _NEEDED
        if self._known is not None:
            broken = np.flatnonzero(~equal[:, self._known - 1])
            complete[: broken[0] if len(broken) else len(ids)] = False
            if len(broken):
                self._known = None
        ends = np.flatnonzero(complete.any(axis=1))
        read = int(ends[0]) + 1 if len(ends) else len(ids)
        self.seen += read
        self._newest, self._runs = text[read : read + LONGEST_PERIOD], runs[read - 1]
        if not len(ends):
            return None
        self._known = period = int(_PERIODS[complete[read - 1]][0])
        return Loop(self.seen - period - int(self._runs[period - 1]), period, self.seen)


def first_loop(token_ids: Sequence[int] | np.ndarray) -> Loop | None:
    """The first loop of a text; None if it has none."""
    return RepetitionGuard().scan(token_ids)
