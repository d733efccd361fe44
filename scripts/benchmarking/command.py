"""Exit statuses of the benchmark's commands, whose errors are one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import tokenswift_jax as ts


def exit_status(run: Callable[[], int]) -> int:
    """The status of `run`: 2 for bad input or a file that cannot be written, 130 for an interrupt."""
    try:
        return run()
    except (ts.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
