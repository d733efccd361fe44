"""Phases without text, such as loading: a terminal shows each one as it runs, a log gets a line now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from tokenswift_jax.cli.progress import ProgressLine
from tokenswift_jax.processes import watchdog

_SECONDS_BETWEEN_LINES = 10.0  # for streams that cannot rewrite a line: rare enough for a log
_SECONDS_BETWEEN_TICKS = 1.0  # a terminal shows whole seconds


@dataclass
class _Phase:
    """One phase in progress.

    Attributes:
      name: words for a person.
      begun: the time at which it began, by the clock, in seconds.
      done, total: the finished part and the whole, in `unit`.
      unit: the unit of both, "" where nothing is counted.
    """

    name: str
    begun: float
    done: int
    total: int
    unit: str

    def line(self, now: float) -> str:
        """The phase's name, its finished part, and the seconds since it began."""
        counted = f": {_amounts(self.done, self.total, self.unit)}," if self.unit else " ..."
        return f"{self.name}{counted} {now - self.begun:.0f} s"


class Phases:
    """A `Report` for a command: on a terminal it rewrites the progress line; elsewhere it prints a line after every ten
    seconds without output. A separate thread shows phases that report nothing while they run, such as compilation."""

    def __init__(
        self,
        line: ProgressLine,
        stream: TextIO,
        *,
        enabled: bool,
        clock: Callable[[], float] = time.monotonic,
        begin_line: Callable[[], None] = lambda: None,
        alone: bool = False,
    ) -> None:
        """Shows phases if `enabled`; calls `begin_line` before it prints a line to `stream`.

        `alone`: no text follows that clears the progress line, so that the end of the last phase does.
        """
        self._alone = alone
        self._line, self._stream, self._enabled, self._clock = line, stream, enabled, clock
        self.begin_line = begin_line
        self._phases: list[_Phase] = []  # the innermost is the last
        self._lock = threading.Lock()
        self._printed_at = clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick_until_closed, name="tokenswift-phases", daemon=True)

    def __enter__(self) -> Phases:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._enabled:
            self._thread.join()

    def __call__(self, phase: str, done: int, total: int, unit: str) -> None:
        """Takes one report (`progress_report.Report`)."""
        watchdog.beat()
        if not self._enabled:
            return
        with self._lock:
            open_phases = [one for one in self._phases if one.name != phase]
            if done < total:
                known = next((one for one in self._phases if one.name == phase), None)
                begun = self._clock() if known is None else known.begun
                open_phases.append(_Phase(phase, begun, done, total, unit))
            self._phases = open_phases
            if self._line.active:
                self._draw()
                if self._alone and not self._phases:
                    self._line.clear()

    def printed(self) -> None:
        """Records that text was shown, which tells a person that the run continues."""
        self._printed_at = self._clock()

    def tick(self) -> None:
        """Shows the innermost phase again with its elapsed seconds, if a line is due."""
        with self._lock:
            if self._line.active:
                self._draw()
            elif self._phases and self._clock() - self._printed_at >= _SECONDS_BETWEEN_LINES:
                self._printed_at = self._clock()
                self.begin_line()
                print(self._phases[-1].line(self._printed_at), file=self._stream, flush=True)

    def _draw(self) -> None:
        if self._phases:
            self._line.draw(self._phases[-1].line(self._clock()))

    def _tick_until_closed(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader has left: the command itself notices
            while not self._closed.wait(_SECONDS_BETWEEN_TICKS):
                self.tick()


def _amounts(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        size, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        return f"{done / size:.1f} of {total / size:.1f} {name}"
    return f"{done:,} of {total:,} {unit}"
