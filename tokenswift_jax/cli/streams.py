"""Handling of closed standard streams: their output goes to the null device, never into another file."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import Any

from tokenswift_jax.errors import WriteError, writing

# The status that a shell shows for a program that SIGPIPE (13) ended, such as `cat` in `cat FILE | head`.
READER_LEFT = 128 + 13


def replace_closed() -> None:
    """Puts the null device in place of standard streams that were closed before the process began (`>&-`).

    Without the null device, the next file that the process opens gets the number of stdout or stderr, and libraries
    print their text into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def flush() -> None:
    """Writes the buffered output of stdout and stderr.

    Raises:
      BrokenPipeError: a reader has left; call `silence_left` next.
      WriteError: one of them cannot be written; its buffer is dropped, so that the interpreter does not try again.
    """
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        try:
            with writing(name):
                stream.flush()
        except WriteError:
            _silence(stream)
            raise


def show(*lines: object) -> None:
    """Prints lines on stdout.

    Raises:
      WriteError: stdout cannot be written; the line of the error names it.
    """
    with writing("standard output"):
        print(*lines, sep="\n")


def say(line: str) -> None:
    """Prints a line of a program that goes on where the line cannot be written: to a reader that has left, or to a full
    disk. Lines after it go to the null device."""
    try:
        print(line, flush=True)
    except OSError:
        silence(sys.stdout)


def silence(stream: Any) -> None:
    """Drops the stream's buffer; from now on it writes to the null device. Does nothing to a stream without a file."""
    with contextlib.suppress(OSError, ValueError):
        _silence(stream)


def silence_left() -> bool:
    """Whether a reader of stdout or stderr has left; its stream writes to the null device from now on."""
    left = [stream for stream in (sys.stdout, sys.stderr) if _reader_left(stream)]
    for stream in left:
        _silence(stream)
    return bool(left)


def _reader_left(stream: Any) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # not a stream of the operating system
        return False
    if not hasattr(select, "poll"):
        return True  # this system cannot tell, and a broken pipe is mostly one of ours
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _silence(stream: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
