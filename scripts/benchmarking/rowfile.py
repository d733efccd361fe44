"""The file of rows: written as they come, and read again by a later run that need not measure them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarking.environment import load_average
from tokenswift_jax.errors import UserError

Row = dict[str, Any]
_OF_A_RUN = ("date", "load_average", "load_average_at_start")  # fields that two runs of one measurement do not share


class RowFile:
    """JSON lines of one output file; calling it with a row's fields appends them.

    Attributes:
      rows: what this run measured or found, in order.
    """

    def __init__(self, path: Path, common: Row) -> None:
        """`common`: fields of every row of this run.

        Raises:
          UserError: a line of the file is not JSON; a torn last one is taken away.
        """
        self.rows: list[Row] = []
        self._path = path
        self._common = common
        self._earlier = _read(path)

    def __call__(self, fields: Row) -> None:
        self.rows.append(self._common | {"load_average": load_average()} | fields)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1], allow_nan=False) + "\n")

    def find(self, fields: Row) -> Row | None:
        """The newest row of an earlier run with these fields: on this machine, with these versions and weights."""
        asked = {name: value for name, value in self._common.items() if name not in _OF_A_RUN} | fields
        asked = json.loads(json.dumps(asked))  # tuples are lists in a file
        fitting = (row for row in reversed(self._earlier) if all(row.get(name) == asked[name] for name in asked))
        return next(fitting, None)

    def keep(self, row: Row) -> None:
        """Counts a row that was found among this run's."""
        self.rows.append(row)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError:
        raise UserError(f"{path} does not hold JSON lines; name another --output") from None
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows
