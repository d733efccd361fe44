"""Metrics of a run: one object a line in a JSONL file, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenswift_jax.errors import UserError


class MetricsWriter:
    """Appends rows to a JSONL file, flushed row by row, and to TensorBoard event files beside it where asked.

    A row is `{"step": 7, "train/loss": 4.2, ..}`: names with slashes, as TensorBoard groups them; a number that is not
    finite is null in the file. A run that resumes at step s first drops the rows of steps >= s (and a last line that a
    kill tore), so that its file ends up equal, byte for byte, to that of a run nobody interrupted.

    Args:
      path: the JSONL file; made if it is not there.
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
            self._file = path.open("w" if resume_at is None else "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"metrics file {path}: {error.strerror}; name a place that can be written") from error

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """One row; arrays of one element count as numbers."""
        numbers = {name: value if type(value) is int else float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def close(self) -> None:
        """Closes the files, the JSONL one on disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The file's rows; a last line that was torn is left out.

    Raises:
      UserError: the file is missing or holds anything else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"metrics file {path}: {error.strerror}") from error
    return [row for _, row in _rows(data, path)]


def _rows(data: bytes, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(offset past the row, row) of every whole line."""
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
    """Drops the rows of steps >= `step`; what stands before the first of them stays as it is, byte for byte."""
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
