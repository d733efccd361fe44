"""A lock on an open file, by which one process at a time works on what the file stands for."""

from __future__ import annotations

from typing import IO, Any


def take_lock(file: IO[Any]) -> bool:
    """Takes the lock of an open file without waiting; False if another process has it.

    The lock ends when the file is closed, also by a kill. Where the system has no such locks, the answer is always
    True, and the caller must avoid two processes at once.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
