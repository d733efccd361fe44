"""Leases: files by which workers that share a disk agree on who writes which document.

A worker takes a document by creating a file that must not exist yet (O_CREAT | O_EXCL), which one worker alone can do,
on NFS too. It renews the file's date now and then. A worker that has watched a lease for a stated time without a
renewal takes the document over with a file of the next number, which again one alone can create. No worker compares
clocks: the file server sets the dates, and the watcher counts by its own clock since it last saw one change.

A lease saves work, no more: if a worker was only slow, two write the same document for a while, and since the tokens
depend on the document alone, both write the same text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_RENEWALS = 8  # in the time after which others take over


class Lease:
    """The lease of a document that this process has; a thread renews it.

    Attributes:
      number: 1, or one more than that of the lease that this one took over.
      lost: set once another worker has taken over, or the file has gone.
    """

    def __init__(self, path: Path, number: int, seconds: float) -> None:
        self._path, self.number, self.lost = path, number, threading.Event()
        self._next = _numbered(path, number + 1)
        self._ended = threading.Event()
        self._pause = seconds / _RENEWALS
        self._thread = threading.Thread(target=self._renew_until_ended, name="tokenswift-lease", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Renews the lease once, unless it is lost."""
        try:
            if self._next.exists():
                self.lost.set()
            else:
                os.utime(_numbered(self._path, self.number))  # without a time: the file server's own
        except FileNotFoundError:
            self.lost.set()
        except OSError:  # a server that is away for a moment; if it stays away, others take over
            pass

    def release(self) -> None:
        """Ends the lease and deletes its file and those that it took over, the newest last."""
        self._ended.set()
        self._thread.join()
        for number in range(1, self.number + 1):
            with contextlib.suppress(OSError):
                _numbered(self._path, number).unlink()

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._pause) and not self.lost.is_set():
            self.renew()


class Leases:
    """The leases in a folder, as one worker sees them."""

    def __init__(self, folder: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes a lease over once `clock` has counted so many `seconds` without a renewal."""
        self._folder, self._seconds, self._clock = folder, seconds, clock
        self._seen: dict[Path, tuple[int, float]] = {}  # a lease's date, in ns, and when it was first seen

    def take(self, name: str, listing: Iterable[str]) -> Lease | None:
        """The document's lease; None if another worker has it.

        `listing` contains the names in the folder, as of a moment ago.
        """
        path = self._folder / f".{name}.lease"
        pattern = re.compile(rf"{re.escape(path.name)}-([0-9]+)")
        newest = max((int(found[1]) for one in listing if (found := pattern.fullmatch(one))), default=0)
        if newest and not self._is_dead(_numbered(path, newest)):
            return None
        if not _created(_numbered(path, newest + 1)):
            return None
        return Lease(path, newest + 1, self._seconds)

    def _is_dead(self, path: Path) -> bool:
        """Whether the lease was not renewed in time, or its worker ran in this machine and has ended."""
        try:
            # Without opening the file, NFS answers with the date of up to a minute ago.
            with path.open("rb") as file:
                renewed, owner = os.fstat(file.fileno()).st_mtime_ns, _owner(file.read())
        except OSError:  # it has just ended
            return False
        now = self._clock()
        known = self._seen.get(path)
        if known is None or known[0] != renewed:
            self._seen[path] = renewed, now
        elif now - known[1] >= self._seconds:
            return True
        return bool(owner) and owner.get("system") == _system() and _start_of(owner.get("pid")) != owner.get("started")


def owner_of(folder: Path, name: str, listing: Iterable[str]) -> str | None:
    """The host and the process of the newest lease of a document, for a person; None: there is none."""
    found = sorted((one for one in listing if re.fullmatch(rf"{re.escape(f'.{name}.lease')}-[0-9]+", one)), key=_order)
    if not found:
        return None
    with contextlib.suppress(OSError):
        owner = _owner((folder / found[-1]).read_bytes())
        if owner:
            return f"{owner.get('host')}:{owner.get('pid')}"
    return "unknown"


def _order(name: str) -> int:
    return int(name.rpartition("-")[2])


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")


def _created(path: Path) -> bool:
    """Creates a file with this process's name in it; False if there is one already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        pid = os.getpid()
        owner = {"host": socket.gethostname(), "pid": pid, "system": _system(), "started": _start_of(pid)}
        file.write(json.dumps(owner).encode())
    return True


def _owner(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        owner = json.loads(data)
        return owner if isinstance(owner, dict) else {}
    return {}


def _system() -> str | None:
    """Identifies the running system and its table of processes (containers have their own); None: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: Any) -> str | None:
    """The start of a process of this system, in its clock's ticks; None: there is no such process."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a process that has ended keeps its entry for its parent
    except (OSError, ValueError, TypeError, IndexError):
        return None
