"""What the package's commands share: flags that answer in one line, exit statuses, a quiet tokenizer library."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tokenswift_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Wrong flags are UserErrors that name the way to the right ones; `prog` is what a person types."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def with_dashes(argv: Sequence[str]) -> list[str]:
    """The words with HF's own spelling of flags, --max_new_tokens, made ours."""
    return [re.sub(r"^--[a-z_-]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]


def exit_status(run: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """What `run` returns; an error is one line on stderr: 2 for bad input, 130 interrupted, 1 the system's.

    interrupted: what is said after Ctrl-C.
    """
    try:
        return run()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except OSError as error:  # a disk that is full, a file that has gone
        print(f"error: {error}", file=sys.stderr)
        return 1


def quiet_transformers() -> None:
    """No advice about frameworks that are not needed here; before transformers is imported."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
