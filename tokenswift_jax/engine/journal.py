"""The journal: a file of every emitted token of one row, from which a killed run continues to the same token ids.

The file contains one JSON object per line: a header with everything that determines the token ids, then one record per
chunk. A line counts once its newline is on disk, so a kill costs at most the chunk in flight. Each line ends with a
checksum of the rest; lines of earlier versions of this package have none.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.file_lock import take_lock
from tokenswift_jax.paths import check_writable, expanded, resolved
from tokenswift_jax.token_log import DRAFTED, NGRAM, PREFILL_OFFSET, RECORD, SAMPLED, TokenLog, from_columns

FORMAT = {"format": "tokenswift_jax journal", "version": 1}
UNCOMPARED = ("asked",)  # fields of the header that identify the source of others
_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}\r?$')  # an editor or a copy may have written CRLF


def recorded_header(path: str | Path) -> dict[str, Any] | None:
    """The header of a journal, without its checksum; None if there is no file, or no whole and intact header in it."""
    if not _is_regular(path):  # else reading a device or a pipe might never end
        return None
    try:
        with expanded(path).open("rb") as file:
            line = file.readline()
    except OSError:
        return None
    found = checked_record(line[:-1]) if line.endswith(b"\n") else None
    return found if found is not None and all(found.get(name) == value for name, value in FORMAT.items()) else None


def headless(path: str | Path) -> UserError:
    """The error for a file that exists but has no header that `recorded_header` reads."""
    if not _is_regular(path):
        return _irregular(path)
    try:
        with expanded(path).open("rb") as file:
            line = file.readline()
    except OSError as error:
        return UserError(f"cannot open the journal {path}: {error.strerror}")
    if line.endswith(b"\n") and _is_damaged(line[:-1]):
        return UserError(f"journal {path} is damaged in line 1: its checksum differs; start a new one")
    if not line.endswith(b"\n") and _begins_a_header(line):
        return UserError(f"journal {path} ends before its first line does; give the prompt too, to begin the run")
    return _not_a_journal(path)


class OtherRunError(UserError):
    """The journal is of a run with other values.

    Attributes:
      fields: the names of the values.
    """

    def __init__(self, path: Path, fields: list[str]) -> None:
        self.fields = fields
        super().__init__(
            f"journal {path} is of another run: it differs in {', '.join(fields)}; "
            "give that run's values or name another file"
        )


class Journal:
    """An append-only file of one run; `begin` is the first call that writes.

    Attributes:
      parts: records of an earlier run's chunks.
      schedule_trace: the schedule trace of that run.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], resume: bool, vocab: int | None = None):
        """Opens the journal of an earlier run if `resume` is true; `begin` creates a new file.

        `vocab` is the number of token ids; None: ids read back may be any from 0 on.

        Raises:
          UserError: the file exists and `resume` is false, or it does not exist and cannot be created; it is in use, is
            not a journal, is damaged before its last record, or has another header (the message names the fields).
        """
        self._path, self._vocab = expanded(path), vocab
        if self._path.is_symlink():
            self._path = resolved(self._path)  # no file is made in the place of a link
        self._header = checked_line({**FORMAT, **header})
        self._file: BinaryIO | None = None
        self._end = 0
        self._count = 0
        self.parts: list[TokenLog] = []
        self.schedule_trace: list[dict[str, Any]] = []
        check_writable(self._path, "journal")
        if not self._path.exists():
            return
        if not _is_regular(self._path):
            raise _irregular(path)
        if not resume:
            raise UserError(
                f"journal {path} exists; continue it with resume=True or name another file",
                arguments=("journal", "resume"),
            )
        try:
            self._file = self._path.open("r+b")
        except OSError as error:
            raise UserError(f"cannot open the journal {path}: {error.strerror}") from None
        try:
            self._lock()
            self._load(self._file.read(), header)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Drops a torn last record, or starts the file with its header.

        Raises:
          UserError: another run has begun the same file in the meantime.
          WriteError: the file cannot be written.
        """
        new = self._file is None
        if new:
            try:
                with writing(f"the journal {self._path}"):
                    self._file = self._path.open("xb")
            except OSError as error:
                if not isinstance(error.__cause__, FileExistsError):
                    raise
                raise UserError(
                    f"journal {self._path} was started by another run in the meantime; wait for it or name another file"
                ) from None
            self._lock()
        assert self._file is not None
        try:
            with writing(f"the journal {self._path}"):
                self._file.truncate(self._end)
                self._file.seek(self._end)
            if not self._end:
                self._write(self._header)
                _sync_folder(self._path.parent)
        except OSError:
            if new:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            raise

    def append(self, records: TokenLog, schedule_trace: list[dict[str, Any]]) -> None:
        """Writes one finished chunk and its trace entries; they are on disk when this returns.

        Raises:
          WriteError: the file cannot be written, for example on a full disk; the records before are intact.
        """
        record: dict[str, Any] = {"at": self._count}
        record |= {name: getattr(records, name).tolist() for name in RECORD}
        record["seconds"] = float(records.seconds.sum())
        if schedule_trace:
            record["schedule_trace"] = schedule_trace
        self._write(checked_line(record))
        self._count += len(records)

    def close(self) -> None:
        """Releases the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk refused before, it refuses again
                self._file.close()
            self._file = None

    def _write(self, line: bytes) -> None:
        assert self._file is not None, "begin comes first"
        with writing(f"the journal {self._path}"):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _lock(self) -> None:
        assert self._file is not None
        if not take_lock(self._file):
            raise UserError(f"journal {self._path} is in use by another run; wait for it or name another file")

    def _load(self, data: bytes, header: Mapping[str, Any]) -> None:
        lines = data.split(b"\n")[:-1]
        if not lines:
            if not _begins_a_header(data):
                raise _not_a_journal(self._path)
            return
        first, checked = checked_record(lines[0]), _CHECKSUM.search(lines[0]) is not None
        if first is None and checked:
            raise UserError(
                f"journal {self._path} is damaged in line 1 of {len(lines)}: its checksum differs; start a new one"
            )
        if first is None or any(first.get(name) != value for name, value in FORMAT.items()):
            raise _not_a_journal(self._path)
        # Without the round trip through JSON, a tuple differs from the list in the file.
        if differing := _differing(first, checked_record(self._header[:-1]) or {}):
            raise OtherRunError(self._path, differing)
        self._end = len(lines[0]) + 1
        for number, line in enumerate(lines[1:], start=2):
            # A journal whose header has a checksum has one in every line.
            record = checked_record(line, required=checked)
            records = _records(record, self._count, self._vocab) if record is not None else None
            if record is None or records is None:
                if number < len(lines):
                    raise UserError(
                        f"journal {self._path} is damaged in line {number} of {len(lines)}; delete the lines from "
                        "there on to continue before them, or name another file"
                    )
                return
            self.parts.append(records)
            self.schedule_trace.extend(record.get("schedule_trace", []))
            self._count += len(records)
            self._end += len(line) + 1


def _begins_a_header(data: bytes) -> bool:
    """Whether the bytes begin as every header does; they may end before its beginning does."""
    known = json.dumps(FORMAT).encode()[:-1]
    return data[: len(known)] == known[: len(data)]


def _is_damaged(line: bytes) -> bool:
    return _CHECKSUM.search(line) is not None and checked_record(line) is None


def _is_regular(path: str | Path) -> bool:
    try:
        return expanded(path).is_file()
    except (OSError, ValueError):
        return False


def _irregular(path: str | Path) -> UserError:
    return UserError(f"journal {path} is no regular file; name another file")


def _not_a_journal(path: str | Path) -> UserError:
    return UserError(f"{path} is not a journal of this version of tokenswift_jax; name another file")


def checked_line(record: Mapping[str, Any]) -> bytes:
    """The line of a record, with its checksum."""
    text = json.dumps(record).encode()
    return b'%s, "crc32": "%08x"}\n' % (text[:-1], zlib.crc32(text))


def checked_record(line: bytes, *, required: bool = False) -> dict[str, Any] | None:
    """The object of a line without its checksum; None if it is none, or if the checksum differs.

    A line without a checksum counts unless one is `required`.
    """
    checksum = _CHECKSUM.search(line)
    if checksum is None and required:
        return None
    if checksum is not None:
        line = line[: checksum.start()] + b"}"
        if zlib.crc32(line) != int(checksum[1], 16):
            return None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    return None


def _records(record: Mapping[str, Any], count: int, vocab: int | None) -> TokenLog | None:
    """The chunk of a record; None if the record is malformed, has values out of range, or does not follow the first
    `count` tokens."""
    columns = [_integers(record.get(name)) for name in RECORD]
    lengths = {len(column) for column in columns}
    seconds, trace = record.get("seconds"), record.get("schedule_trace", [])
    if len(lengths) != 1 or 0 in lengths or record.get("at") != count or not isinstance(seconds, int | float):
        return None
    if not 0 <= seconds < math.inf or not isinstance(trace, list) or not all(isinstance(one, dict) for one in trace):
        return None
    token_ids, sources, offsets, offered = columns
    if min(token_ids) < 0 or max(token_ids) >= (2**31 if vocab is None else vocab):
        return None
    if not {*sources} <= {SAMPLED, DRAFTED, NGRAM} or min(offsets) < PREFILL_OFFSET or min(offered) < 0:
        return None
    return from_columns(token_ids, sources, offsets, offered, [seconds / len(token_ids)] * len(token_ids))


def _integers(value: Any) -> list[int]:
    return value if isinstance(value, list) and all(type(entry) is int for entry in value) else []


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the fields that differ, with dots in the names of nested fields."""
    names = []
    for name in sorted({*old, *new} - {*UNCOMPARED}):
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
