"""The value of drafts to a pool with several texts: it decides for each chunk whether to draft."""

from __future__ import annotations

_WEIGHT = 0.2  # of the newest chunk in the running average
_RETRY = 64  # chunks of plain decoding after which drafts are tried again: texts change


class DraftValue:
    """Compares the tokens that drafts give with the time that they take.

    Attributes:
      tokens: the running average of tokens per text and drafting iteration; None before the first one.
    """

    def __init__(self, drafting: float, plain: float) -> None:
        """Takes the seconds of an iteration with drafts and of one without, of all rows of the pool."""
        self._ratio = drafting / plain
        self.tokens: float | None = None
        self._plain_chunks = 0

    def pays(self) -> bool:
        """Whether the next chunk should draft."""
        if self.tokens is None or self.tokens > self._ratio:
            return True
        self._plain_chunks += 1
        if self._plain_chunks < _RETRY:
            return False
        self._plain_chunks = 0
        return True

    def retry(self) -> None:
        """Makes the next chunk draft, because the drafts of a new text may be better."""
        self.tokens = None

    def took(self, tokens: int, iterations: int) -> None:
        """Takes the tokens of a drafting chunk and its iterations, each added up over its texts."""
        if iterations:
            rate = tokens / iterations
            self.tokens = rate if self.tokens is None else self.tokens + _WEIGHT * (rate - self.tokens)
