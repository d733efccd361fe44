"""The progress line: one line on a terminal's stderr, below the text that streams to stdout."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from tokenswift_jax.stats import acceptance
from tokenswift_jax.token_log import TokenLog

_REDRAW_SECONDS = 0.2
_RATE_SECONDS = 10.0  # the newest seconds that determine the rate
_BAR_COLUMNS = 20
# Moves down one line (the terminal scrolls if necessary) and up again: the line below exists, the column is kept.
_MAKE_ROOM = "\x1bD\x1b[A"
_SAVE, _RESTORE, _LINE_BELOW, _ERASE = "\x1b7", "\x1b8", "\x1b[B\r", "\x1b[2K"


class ProgressLine:
    """Shows tokens/s, acceptance and time left; silent unless the stream is a terminal.

    The line appears below the cursor and does not move the cursor, so that the caller can keep writing text to the same
    terminal: it calls `clear` before each piece of text and `draw` after it.
    """

    def __init__(self, stream: TextIO, total: int, enabled: bool = True, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        active = enabled and stream.isatty()
        self._console = Console(file=stream, highlight=False) if active else None
        self._total, self._clock = total, clock
        self._done = self._accepted = self._depth = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._drawn_at = float("-inf")
        self._visible = False

    @property
    def active(self) -> bool:
        """Whether the line is ever drawn."""
        return self._console is not None

    def expect(self, total: int) -> None:
        """Sets the number of tokens of the whole text."""
        self._total = total

    def begin(self, total: int) -> None:
        """Starts over, for another text of at most so many tokens."""
        self._total, self._done, self._accepted, self._depth = total, 0, 0, 0
        self._marks.clear()

    def add(self, records: TokenLog) -> None:
        """Adds a chunk to the counts."""
        counts = acceptance(records)
        self._done += len(records)
        self._accepted += counts["accepted_tokens"]
        self._depth += counts["draft_depth"]
        now = self._clock()
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_SECONDS:
            self._marks.popleft()

    def clear(self) -> None:
        """Erases the line."""
        if self._visible:
            self._stream.write(_SAVE + _LINE_BELOW + _ERASE + _RESTORE)
            self._stream.flush()
            self._visible = False  # only now: an interrupt may come earlier, and erasing twice is harmless

    def draw(self, note: str = "") -> None:
        """Shows the line, or `note` in its place; redraws counts only a few times a second."""
        now = self._clock()
        if self._console is None or (not note and now - self._drawn_at < _REDRAW_SECONDS):
            return
        self._drawn_at = now if not note else self._drawn_at
        with self._console.capture() as capture:
            self._console.print(note or self._table(), end="", no_wrap=True, overflow="ellipsis", crop=True)
        line = capture.get().rstrip("\n")
        self._visible = True
        self._stream.write(_MAKE_ROOM + _SAVE + _LINE_BELOW + _ERASE + line + _RESTORE)
        self._stream.flush()

    def _table(self) -> Table:
        (start, before), (end, now) = self._marks[0], self._marks[-1]
        rate = (now - before) / (end - start) if end > start else 0.0
        parts = [f"{self._done:,}/{self._total:,} tokens"]
        if rate:
            parts += [f"{rate:,.1f} tokens/s", f"{_duration((self._total - self._done) / rate)} left"]
        if self._depth:
            parts.append(f"{self._accepted / self._depth:.0%} accepted")
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(ProgressBar(self._total, self._done, width=_BAR_COLUMNS), "  ".join(parts))
        return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
