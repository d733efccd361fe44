"""Shared code of the commands: one-line errors for wrong flags, exit statuses, a quiet tokenizer library."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from tokenswift_jax.cli import streams
from tokenswift_jax.errors import TextWarning, UserError, is_out_of_memory, writing
from tokenswift_jax.threads import COMPILING

_NO_FLAGS: Mapping[str, str] = MappingProxyType({})


class Parser(argparse.ArgumentParser):
    """Raises UserError for wrong flags and names the way to the right ones; `prog` is the command as typed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints the help. Without it, argparse drops the error of a stream that cannot be written."""
        if message:
            with writing("standard output"):
                (sys.stdout if file is None else file).write(message)

    @property
    def flags(self) -> dict[str, str]:
        """The flag of each Python argument."""
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}


def with_dashes(argv: Sequence[str], parser: Parser) -> list[str]:
    """The words with dashes in the parser's flags that use HF's spelling, such as --max_new_tokens.

    Other words stay: a prompt may begin like a flag.
    """
    known = {option for action in parser._actions for option in action.option_strings}

    def spelt(word: str) -> str:
        flag, equals, value = word.partition("=")
        dashed = flag.replace("_", "-")
        return dashed + equals + value if dashed in known else word

    return [spelt(word) for word in argv]


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
    """Runs a command and returns its exit status: that of `run`, or 2 for bad input, 130 interrupted, 1 a system error.

    An error prints one line on stderr. If the reader of stdout or stderr has left, the command ends quietly with the
    status that SIGPIPE would give.

    Args:
      run: the command.
      flags: the command's flags, by the names of the Python arguments in errors.
      interrupted: the line that Ctrl-C prints.
    """
    streams.replace_closed()
    try:
        try:
            with _warnings_as_lines():
                return _status(run, flags, interrupted)
        finally:
            streams.flush()
    except BrokenPipeError as error:
        if streams.silence_left():
            return streams.READER_LEFT
        return _system_error(error)
    except OSError as error:  # such as a full disk or a file that has gone
        return _system_error(error)


def _status(run: Callable[[], int], flags: Mapping[str, str], interrupted: str) -> int:
    try:
        _check_folder()
        return run()
    except UserError as error:
        print(f"error: {in_flags(error, flags)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError, ValueError) as error:
        # XLA's own line about an allocation names nothing that a person gave.
        if not is_out_of_memory(error):
            raise
        print("error: memory ran out on the way; ask for fewer or shorter texts, or for less at once", file=sys.stderr)
        return 1


def _check_folder() -> None:
    """Raises UserError if somebody has removed the working folder, on which libraries blame other files."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder is not there any more; change to another one (cd)") from None


def _system_error(error: OSError) -> int:
    named = error.filename is not None and error.strerror is not None
    with contextlib.suppress(OSError):  # the error may be that stderr cannot be written
        print(f"error: {error.filename}: {error.strerror}" if named else f"error: {error}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints this package's warnings as one line each; those of others keep their form."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, TextWarning):
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TextWarning)
        warnings.showwarning = show
        yield


def leave(status: int) -> NoReturn:
    """Ends the process with a status of `exit_status`.

    Without `_exit`, the threads of a failed checkpoint writer print their own complaints below the command's last line
    when the interpreter ends; and the interpreter waits for a program that is still being compiled for a text that has
    ended by now. `_exit` loses nothing: commands close their files, however they end.
    """
    if status or any(thread.name.startswith(COMPILING) for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(0)


def quiet_transformers() -> None:
    """Silences advice about frameworks that this package does not need; call it before importing transformers."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
