"""The code that the converters' commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import Parser, exit_status, quiet_transformers


def run(convert: Callable[[list[str]], str], argv: Sequence[str] | None, parser: Parser) -> int:
    """Runs a converter on a command's words and prints its summary on stdout; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv

    def converted() -> int:
        quiet_transformers()
        os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: it computes shapes only and takes no accelerator
        streams.show(convert(list(words)))
        return 0

    return exit_status(converted, flags=parser.flags, interrupted="interrupted, nothing written")
