"""The code that the converters' commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import Parser, exit_status, quiet_transformers
from tokenswift_jax.progress_report import Report


def run(convert: Callable[[list[str]], str], argv: Sequence[str] | None, parser: Parser) -> int:
    """Runs a converter on a command's words and prints its summary on stdout; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv

    def converted() -> int:
        quiet_transformers()
        os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: it computes shapes only and takes no accelerator
        streams.show(convert(list(words)))
        return 0

    return exit_status(converted, flags=parser.flags, interrupted="interrupted, nothing written")


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """The report of a conversion's phases on stderr, a line that a terminal rewrites; silent if `quiet`."""
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine

    line = ProgressLine(sys.stderr, total=0, enabled=not quiet)
    try:
        with Phases(line, sys.stderr, enabled=not quiet, alone=True) as report:
            yield report
    finally:
        line.clear()
