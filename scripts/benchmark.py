"""Measures speed: one JSON row a setting into a file, a table on stdout.

    python scripts/benchmark.py --prompt-file ../shared/corpus/heldout/*.txt
    python scripts/benchmark.py --sections host,capacity --rounds 5
    python scripts/benchmark.py --sections protocol --prompt-file BOOKS --audit --output benchmarks/protocol.jsonl

Sections: `speed` (modes against plain decoding and against transformers' generate), `auto-long` (the cost of `auto`
over long texts of several kinds), `capacity` (a large cache of which little is used against a small one), `host` (host
work per token, by profiling). Two more run only where they are named: `tasks` (an answer, a continuation, two edits and
a JSON list, also against llama.cpp with --llama) and `protocol` (the paper's: long texts after prefixes of books, with
acceptance, n-gram share, time per window, Distinct-n, equality and audit).

Figures are medians of --rounds runs with their smallest and largest value. The runs of a setting are interleaved: every
contender runs once a round on the same passage, and a ratio is the median of the rounds' ratios. `protocol` runs every
contender once, one after the other. Compilation is done in a warm-up or subtracted, prefill is stated apart. Run it on
a machine that does nothing else: rows carry the load. Rows of `protocol` that --output holds already, of the same
setting, machine and versions, are not measured again: a killed run is continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from benchmarking.protocol import protocol
from benchmarking.rows import RowFile
from benchmarking.sections import auto_long, capacity, host, speed, tasks
from benchmarking.settings import add_flags, make_settings

import tokenswift_jax as ts
from tokenswift_jax.cli.command import exit_status
from tokenswift_jax.hardware.environment import load_average
from tokenswift_jax.paths import check_writable

ROOT = Path(__file__).resolve().parent.parent
USUAL = {"speed": speed, "auto-long": auto_long, "capacity": capacity, "host": host}
_MEDIANS = {  # columns of the table: field and format
    "tokens/s": ("tokens_per_second", ".0f"),
    "tokens/pass": ("tokens_per_iteration", ".2f"),
    "x plain": ("speed_vs_autoregressive", ".2f"),
    "x transformers": ("speed_vs_transformers", ".2f"),
    "prefill s": ("prefill_seconds", ".2f"),
}
_SHOWN = {"ms_per_token", "wall_ms_per_token", *(name for name, _ in _MEDIANS.values())}
SECTIONS = USUAL | {"tasks": tasks, "protocol": protocol}


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the rows as they come, prints the table; the exit status: 1 a failed audit, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, tuple(SECTIONS), tuple(USUAL))

    def measured() -> int:
        rows = run(parser.parse_args(argv))
        print(format_table(rows))
        return int(any((row.get("audit") or {}).get("failed", False) for row in rows))

    return exit_status(measured)


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all sections asked for, which are also in the output file."""
    output = asked.output
    if output is None:
        day = datetime.now(UTC).date().isoformat()
        output = ROOT / "benchmarks" / f"{day}-{jax.default_backend()}.jsonl"
        output.parent.mkdir(exist_ok=True)
    check_writable(output, "--output")
    settings = make_settings(asked)
    model = settings.model
    common = ts.describe_environment() | {
        "model": str(asked.model or "the bundled demo"),
        "checkpoint": model.fingerprint[:16],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": model.dtype,
        "quick": asked.quick,
        "load_average_at_start": load_average(),
    }
    file = RowFile(output, common)
    for name in asked.sections:
        SECTIONS[name](settings, file)
    return file.rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """An aligned table of the rows: medians, with the spread of the time."""
    headings = ("section", "prefix", "T", "contender", "ms/token (min..max)", *_MEDIANS, "compile s", "note")
    cells = [headings, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(row: dict[str, Any]) -> list[str]:
    time, nodes = row["ms_per_token"], row["node_budget"]
    return [
        row["section"],
        f"{row['prefix']:,}",
        f"{row['temperature']:g}",
        row["contender"] + ("" if nodes is None else f", {nodes} nodes"),
        f"{time['median']:.3f} ({time['min']:.3f}..{time['max']:.3f})",
        *(format(row[name]["median"], form) if name in row else "" for name, form in _MEDIANS.values()),
        f"{row['compile_seconds_excluded']:.1f}",
        "; ".join(_notes(row)),
    ]


def _notes(row: dict[str, Any]) -> list[str]:
    """The row's other figures by name, and whether its text differs from plain decoding's."""
    notes = [row["text"]] if "text" in row else []
    figures = {name: value["median"] for name, value in row.items() if isinstance(value, dict) and "median" in value}
    figures |= {name: row[name] for name in ("acceptance_rate", "ngram_share") if isinstance(row.get(name), float)}
    notes += [f"{name} {value:.3f}" for name, value in figures.items() if name not in _SHOWN]
    if row.get("audit"):
        notes.append(f"audit: {row['audit']['mismatches']} of {row['audit']['positions']:,} draws differ")
    equal = row.get("leading_tokens_equal_to_autoregressive")
    if equal is not None and equal < row["new_tokens"]:
        notes.append(f"differs from plain decoding after {equal} tokens")
    return notes


if __name__ == "__main__":
    sys.exit(main())
