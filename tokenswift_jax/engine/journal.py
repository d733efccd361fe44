"""The journal: a file of every emitted token of one row, from which a killed run continues to the same token ids.

The file contains one JSON object per line: a header with everything that determines the token ids, then one record per
chunk. A line counts once its newline is on disk, so a kill costs at most the chunk in flight.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import check_writable
from tokenswift_jax.token_log import RECORD, TokenLog, from_columns

FORMAT = {"format": "tokenswift_jax journal", "version": 1}


class Journal:
    """An append-only file of one run; `begin` is the first call that writes.

    Attributes:
      parts: records of an earlier run's chunks.
      schedule_trace: the schedule trace of that run.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], resume: bool):
        """Opens the journal of an earlier run if `resume` is true; `begin` creates a new file.

        Raises:
          UserError: the file exists and `resume` is false, or it does not exist and cannot be created; it is in use, is
            not a journal, is damaged before its last record, or has another header (the message names the fields).
        """
        self._path = Path(path)
        self._header = _line({**FORMAT, **header})
        self._file: BinaryIO | None = None
        self._end = 0
        self._count = 0
        self.parts: list[TokenLog] = []
        self.schedule_trace: list[dict[str, Any]] = []
        check_writable(self._path, "journal")
        if not self._path.exists():
            return
        if not resume:
            raise UserError(
                f"journal {path} exists; continue it with resume=True or name another file",
                arguments=("journal", "resume"),
            )
        self._file = self._path.open("r+b")
        try:
            self._lock()
            self._load(self._file.read(), header)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Drops a torn last record, or starts the file with its header."""
        if self._file is None:
            self._file = self._path.open("xb")
            self._lock()
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if not self._end:
            self._write(self._header)
            _sync_folder(self._path.parent)

    def append(self, records: TokenLog, schedule_trace: list[dict[str, Any]]) -> None:
        """Writes one finished chunk and its trace entries; they are on disk when this returns."""
        record: dict[str, Any] = {"at": self._count}
        record |= {name: getattr(records, name).tolist() for name in RECORD}
        record["seconds"] = float(records.seconds.sum())
        if schedule_trace:
            record["schedule_trace"] = schedule_trace
        self._write(_line(record))
        self._count += len(records)

    def close(self) -> None:
        """Releases the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: bytes) -> None:
        assert self._file is not None, "begin comes first"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        assert self._file is not None
        try:
            import fcntl
        except ImportError:  # not on this system: the caller must avoid two runs at once
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"journal {self._path} is in use by another run; wait for it or name another file"
            ) from error

    def _load(self, data: bytes, header: Mapping[str, Any]) -> None:
        lines = data.split(b"\n")[:-1]
        if not lines:
            known = _line(FORMAT)[:-2]  # the beginning of every header
            if data[: len(known)] != known[: len(data)]:
                raise self._not_a_journal()
            return
        first = _parse(lines[0])
        if first is None or any(first.get(name) != value for name, value in FORMAT.items()):
            raise self._not_a_journal()
        # Without the round trip through JSON, a tuple differs from the list in the file.
        if differing := _differing(first, json.loads(self._header)):
            raise UserError(
                f"journal {self._path} is of another run: it differs in {', '.join(differing)}; "
                "give what that run had or name another file"
            )
        self._end = len(lines[0]) + 1
        for number, line in enumerate(lines[1:], start=2):
            record = _parse(line)
            records = _records(record, self._count) if record is not None else None
            if record is None or records is None:
                if number < len(lines):
                    raise UserError(
                        f"journal {self._path} is damaged in line {number} of {len(lines)}; start a new one"
                    )
                return
            self.parts.append(records)
            self.schedule_trace.extend(record.get("schedule_trace", []))
            self._count += len(records)
            self._end += len(line) + 1

    def _not_a_journal(self) -> UserError:
        return UserError(f"{self._path} is not a journal of this version of tokenswift_jax; name another file")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    return None


def _records(record: Mapping[str, Any], count: int) -> TokenLog | None:
    """The chunk of a record; None if the record is malformed or does not follow the first `count` tokens."""
    columns = [_integers(record.get(name)) for name in RECORD]
    lengths = {len(column) for column in columns}
    seconds = record.get("seconds")
    if len(lengths) != 1 or 0 in lengths or record.get("at") != count or not isinstance(seconds, int | float):
        return None
    token_ids, sources, offsets, offered = columns
    return from_columns(token_ids, sources, offsets, offered, [seconds / len(token_ids)] * len(token_ids))


def _integers(value: Any) -> list[int]:
    return value if isinstance(value, list) and all(type(entry) is int for entry in value) else []


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the fields that differ, with dots in the names of nested fields."""
    names = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            names += _differing(before, now, f"{prefix}{name}.")
        elif before != now:
            names.append(prefix + name)
    return names


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name durable where the system can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
