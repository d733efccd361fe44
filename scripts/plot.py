"""Draws the figures of measurements: PNG files, whose footer says which machine, versions and day.

    python scripts/plot.py benchmarks/FILE.jsonl ...            all that can be drawn, into docs/figures
    python scripts/plot.py benchmarks/FILE.jsonl --output DIR

Rows of several files are drawn together. The same rows give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plotting import benchmark_figures, device_figures

from tokenswift_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# One entry a kind of measurement: rows, its own and others', to {name of a picture: what writes it}.
KINDS: tuple[Callable[[Sequence[dict[str, Any]]], dict[str, Callable[[Path], None]]], ...] = (
    benchmark_figures.figures,
    device_figures.figures,
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file: one JSON object, a list of them, or JSON lines.

    Raises:
      UserError: it cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name JSON of a measurement") from error
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
    except ValueError:
        try:
            rows = [json.loads(line) for line in text.splitlines()]
        except ValueError:
            raise UserError(f"{path} holds neither JSON nor JSON lines") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds something else than objects; name JSON of a measurement")
    return rows


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes every figure that the rows allow into a folder, which is made where it is missing.

    Raises:
      UserError: there is nothing to draw, or the folder cannot be written.
    """
    found = {name: write for kind in KINDS for name, write in kind(rows).items()}
    if not found:
        raise UserError(
            "nothing to draw: no rows of the benchmark's protocol or ablations (those of --quick do not count), "
            "and none of a device check's steps or kernels"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}; name a folder that can be written") from error
    written = []
    for name, write in found.items():
        written.append(folder / f"{name}.png")
        write(written[-1])
    return written


def main(argv: list[str] | None = None) -> int:
    """Draws and says what it wrote; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON of scripts/benchmark.py or device_check.py")
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
