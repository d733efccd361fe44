"""What the package's commands share: flags that answer in one line, exit statuses, a quiet tokenizer library."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from tokenswift_jax.cli import streams
from tokenswift_jax.errors import UserError

_NO_FLAGS: Mapping[str, str] = MappingProxyType({})


class Parser(argparse.ArgumentParser):
    """Wrong flags are UserErrors that name the way to the right ones; `prog` is what a person types."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    @property
    def flags(self) -> dict[str, str]:
        """The flag of each Python argument."""
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}


def with_dashes(argv: Sequence[str]) -> list[str]:
    """The words with HF's own spelling of flags, --max_new_tokens, made ours."""
    return [re.sub(r"^--[a-z_-]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]


def in_flags(error: UserError, flags: Mapping[str, str]) -> str:
    """The error's line with the command's flags in place of the Python arguments that it names.

    `name=True` becomes the bare flag, `name={...}` the flag with the object quoted for a shell.
    """
    message = " ".join(str(error).split())
    wanted = Counter(name for name in error.arguments if name in flags)
    if not wanted:
        return message

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if not wanted[name]:
            return found[0]
        wanted[name] -= 1
        return flags[name] if value in (None, "True") else f"{flags[name]} '{value}'"

    return re.sub(rf"(?<!\w)({'|'.join(wanted)})(?!\w)(?:=(True|{{[^{{}}]*}}))?", flag, message)


def exit_status(
    run: Callable[[], int], *, flags: Mapping[str, str] = _NO_FLAGS, interrupted: str = "interrupted"
) -> int:
    """The status that `run` returns; an error is one line on stderr: 2 for bad input, 130 interrupted, 1 the system's.

    A reader of stdout or stderr that has left ends the command quietly with the status that SIGPIPE would give.

    Args:
      run: the command.
      flags: its flags by the names of the Python arguments that errors use.
      interrupted: the line after Ctrl-C.
    """
    streams.replace_closed()
    try:
        try:
            return _status(run, flags, interrupted)
        finally:
            streams.flush()
    except BrokenPipeError as error:
        if streams.silence_left():
            return streams.READER_LEFT
        return _system_error(error)
    except OSError as error:  # a disk that is full, a file that has gone
        return _system_error(error)


def _status(run: Callable[[], int], flags: Mapping[str, str], interrupted: str) -> int:
    try:
        return run()
    except UserError as error:
        print(f"error: {in_flags(error, flags)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def _system_error(error: OSError) -> int:
    with contextlib.suppress(OSError):  # stderr may be what cannot be written
        print(f"error: {error}", file=sys.stderr)
    return 1


def leave(status: int) -> NoReturn:
    """Ends the process with a status of `exit_status`.

    Without `_exit`, threads of a checkpoint writer that failed print their own complaints below the command's last line
    when the interpreter ends. Nothing is lost: commands close their files, whatever stopped them.
    """
    if status:
        os._exit(status)
    sys.exit(0)


def quiet_transformers() -> None:
    """No advice about frameworks that are not needed here; before transformers is imported."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
