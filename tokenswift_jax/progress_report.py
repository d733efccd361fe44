"""Progress of the phases in which no text appears: loading, compiling, reading a prompt, auditing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tokenswift_jax.errors import UserError


class Report(Protocol):
    """A function called when a phase begins (`done` 0), goes on, and has ended (`done` equal to `total`).

    Phases nest: a phase that begins inside another ends before it.
    """

    def __call__(self, phase: str, done: int, total: int, unit: str) -> None:
        """Takes one report.

        Args:
          phase: words for a person, such as "compiling fused, 7 nodes".
          done, total: progress of the phase in `unit`; a phase without counted parts has 0 of 1, then 1 of 1.
          unit: "positions", "bytes", or "" where nothing is counted.
        """
        ...


def silent(phase: str, done: int, total: int, unit: str) -> None:
    """Reports nothing."""


def check_report(report: Any) -> None:
    """Raises UserError unless `report` is a function."""
    if not callable(report):
        raise UserError(f"report is {report!r:.80}; it must be a function, such as progress_report.silent", ("report",))


@contextmanager
def phase(report: Report, name: str, total: int = 1, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Reports the beginning of a phase and, even after an error, its end; yields a function that reports progress."""

    def so_far(done: int) -> None:
        if 0 < done < total:
            report(name, done, total, unit)

    report(name, 0, total, unit)
    try:
        yield so_far
    finally:
        report(name, total, total, unit)
