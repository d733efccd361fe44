"""The text of one row of the batch, with the source of each part."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenswift_jax.text.detokenizer import Decodes, Detokenizer
from tokenswift_jax.text.stops import StopScanner

Segment = tuple[str, int]  # a piece of text and the source of the token that completed it


class Transcript:
    """A detokenizer and a stop scanner in one; without a tokenizer it stays empty.

    Attributes:
      characters: those of the text so far, with those that it still keeps back for the scanner.
    """

    def __init__(self, tokenizer: Decodes | None, prompt_ids: Sequence[int], stops: Sequence[str] = ()):
        self._detokenizer = Detokenizer(tokenizer, prompt_ids) if tokenizer is not None else None
        self._scanner = StopScanner(stops)
        self._waiting: deque[Segment] = deque()
        self.characters = 0

    def push(self, token_id: int, source: int, *, stops: bool = True) -> list[Segment]:
        """The text that one token releases; `stops` as for `StopScanner.push`."""
        return self._take(self._detokenizer.push(token_id), source, stops) if self._detokenizer else []

    def finish(self, source: int) -> list[Segment]:
        """The text held back until the end; it ends before a stop string, if it contains one."""
        released = self._take(self._detokenizer.flush(), source) if self._detokenizer else []
        return released + self._release(len(self._scanner.flush()))

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._scanner.stopped

    def _take(self, piece: str, source: int, stops: bool = True) -> list[Segment]:
        if piece:
            self.characters += len(piece)
            self._waiting.append((piece, source))
        return self._release(len(self._scanner.push(piece, stops=stops)))

    def _release(self, count: int) -> list[Segment]:
        released = []
        while count > 0:
            text, source = self._waiting.popleft()
            released.append((text[:count], source))
            if len(text) > count:
                self._waiting.appendleft((text[count:], source))
            count -= len(text)
        return released
