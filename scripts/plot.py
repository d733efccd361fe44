"""Draws the figures of the benchmark's rows: PNG files, whose footer says which machine, versions and day.

    python scripts/plot.py benchmarks/FILE.jsonl ...            all that can be drawn, into docs/figures
    python scripts/plot.py benchmarks/FILE.jsonl --output DIR

Rows of several files are drawn together. The same rows give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotting.benchmark_figures import figures

from tokenswift_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
      UserError: it cannot be read or has something else.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name rows of the benchmark") from error
    except ValueError:
        raise UserError(f"{path} does not hold JSON lines; name rows of the benchmark") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds something else than objects; name rows of the benchmark")
    return rows


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes every figure that the rows allow into a folder, which is made where it is missing.

    Raises:
      UserError: there is nothing to draw, or the folder cannot be written.
    """
    found = figures(rows)
    if not found:
        raise UserError(
            "nothing to draw: no rows of the benchmark's protocol or ablations; those of --quick do not count"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}; name a folder that can be written") from error
    for name, write in found.items():
        write(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in found]


def main(argv: list[str] | None = None) -> int:
    """Draws and prints the paths of the figures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines of scripts/benchmark.py")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures", help="folder (default: docs/figures)")
    arguments = parser.parse_args(argv)
    try:
        for path in draw([row for file in arguments.files for row in read_rows(file)], arguments.output):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
