"""The metrics of a run: a JSONL file with one object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenswift_jax.errors import UserError, writing


class MetricsWriter:
    """Appends lines to a JSONL file and flushes each one; it also writes TensorBoard event files if the caller names a
    folder for them.

    A line is `{"step": 7, "train/loss": 4.2, ..}`, with slashes in the names, by which TensorBoard groups them. The
    file contains null for a number that is not finite. A run that resumes at step s first drops the lines of steps >= s
    (and a last line that a kill tore), so that its file becomes equal, byte for byte, to that of an uninterrupted run.

    Args:
      path: the JSONL file; the writer creates it if it is missing.
      tensorboard: folder of the event files; None for none.
      resume_at: first step that this run will write again; None begins a new file.

    Raises:
      UserError: tensorboardX is missing, or the file cannot be written.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, resume_at: int | None = None) -> None:
        self._events = None if tensorboard is None else _event_writer(tensorboard, resume_at)
        try:
            if resume_at is not None and path.exists():
                _cut(path, resume_at)
            self._path, self._file = path, path.open("w" if resume_at is None else "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"metrics file {path}: {error.strerror}; name a place that can be written") from error

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends the line of one step; arrays of one element count as numbers.

        Raises:
          WriteError: the system refuses, for example on a full disk.
        """
        numbers = {name: value if type(value) is int else float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def close(self) -> None:
        """Closes the files, and first forces the JSONL file to disk."""
        if not self._file.closed:
            with writing(self._path):
                try:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                finally:
                    self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the file as objects, without a last line that a kill tore.

    Raises:
      UserError: the file is missing or contains anything else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"metrics file {path}: {error.strerror}") from error
    return [row for _, row in _rows(data, path)]


def _rows(data: bytes, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Every whole line, as (offset past the line, object)."""
    rows: list[tuple[int, dict[str, Any]]] = []
    end = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise UserError(
                f'{path} line {len(rows) + 1} is not a row of metrics such as {{"step": 7, "train/loss": 4}}'
            )
        rows.append((end, row))
    return rows


def _cut(path: Path, step: int) -> None:
    """Drops the lines from the first of a step >= `step` on, and keeps those before it byte for byte."""
    end = 0
    for after, row in _rows(path.read_bytes(), path):
        if row["step"] >= step:
            break
        end = after
    with path.open("rb+") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def _event_writer(folder: Path, resume_at: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard files need tensorboardX: pip install 'tokenswift_jax[train]', or leave TensorBoard out"
        ) from None
    return SummaryWriter(str(folder), purge_step=resume_at)
