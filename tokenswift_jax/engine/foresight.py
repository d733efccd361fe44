"""The n-gram drafts that a text would have accepted, counted on the host: no trial on the device is needed for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

CHAIN = 3  # tokens of an n-gram draft below the root
RECENT = 64  # newest tokens that an estimate covers


class NgramForesight:
    """Reads the texts of a batch and replays n-gram drafting on them.

    A draft consists of the most frequent continuations, of `CHAIN` tokens, of the root token in the text so far (of
    equally frequent ones the newest), as `speculate.ngram` stores them on the device.

    Args:
      texts: the texts so far.
      lags: per text, the newest tokens that no continuation may contain (`SequenceParams.ngram_lag`).
      budgets: the node budgets to replay; None: no budget.
      most: the most continuations of a draft.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], lags: Sequence[int], budgets: Iterable[int | None], most: int
    ) -> None:
        self._texts = [list(text) for text in texts]
        self._running = set(range(len(texts)))
        self._replays = {
            budget: [_Replay(text, lag, budget, most) for text, lag in zip(self._texts, lags, strict=True)]
            for budget in budgets
        }

    def read(self, row: int, token_ids: Sequence[int]) -> None:
        """Appends emitted tokens to a row's text, and replays the iterations that end within them."""
        self._texts[row] += token_ids
        for replays in self._replays.values():
            replays[row].go_on()

    def tokens_an_iteration(self, budget: int | None) -> float:
        """Tokens that an iteration would have emitted over the newest tokens, the least of the rows; 1 without any."""
        replays = self._replays[budget]
        return min((replays[row].tokens_an_iteration for row in sorted(self._running)), default=1.0)

    def end(self, row: int) -> None:
        """Leaves a finished row out of the estimates."""
        self._running.discard(row)


class _Replay:
    """The iterations that one node budget would have taken over a text.

    Each has a table of its own: at a root it contains no continuation that ends after that root.
    """

    def __init__(self, text: list[int], lag: int, budget: int | None, most: int) -> None:
        self._text, self._lag = text, lag
        self._depth = CHAIN if budget is None else min(CHAIN, budget)
        self._count = most if budget is None else max(1, min(most, budget // CHAIN))
        self._known: dict[int, dict[tuple[int, ...], tuple[int, int]]] = {}
        self._inserted, self._root = 0, len(text) - 1
        self._emitted: deque[int] = deque()

    @property
    def tokens_an_iteration(self) -> float:
        """The mean of the newest iterations; 1 without any."""
        return sum(self._emitted) / len(self._emitted) if self._emitted else 1.0

    def go_on(self) -> None:
        """Replays until an iteration might emit more than the text has."""
        while self._root + self._depth + 1 < len(self._text):
            self._insert(self._root + 1 - self._lag)
            emitted = 1 + self._accepted()
            self._root += emitted
            self._emitted.append(emitted)
            while sum(self._emitted) > RECENT:
                self._emitted.popleft()

    def _insert(self, end: int) -> None:
        """Adds the continuations that end before position `end`."""
        for position in range(max(self._inserted, CHAIN), end):
            first, *rest = self._text[position - CHAIN : position + 1]
            known = self._known.setdefault(first, {})
            known[tuple(rest)] = known.get(tuple(rest), (0, 0))[0] + 1, position
        self._inserted = max(self._inserted, end)

    def _accepted(self) -> int:
        """Tokens of the draft below the root that the text confirms."""
        known = self._known.get(self._text[self._root], {})
        drafts = sorted(known, key=known.__getitem__, reverse=True)[: self._count]
        follows = self._text[self._root + 1 : self._root + 1 + self._depth]
        return max((_agreeing(draft, follows) for draft in drafts), default=0)


def _agreeing(draft: Sequence[int], text: Sequence[int]) -> int:
    """The number of leading tokens that two sequences share."""
    return next((i for i, (a, b) in enumerate(zip(draft, text, strict=False)) if a != b), min(len(draft), len(text)))
