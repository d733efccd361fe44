"""Measures speed: one JSON row a setting into a file, a table on stdout.

    python scripts/benchmark.py --prompt-file ../shared/corpus/heldout/*.txt
    python scripts/benchmark.py --sections host,capacity --rounds 5
    python scripts/benchmark.py --sections protocol --prompt-file BOOKS --audit --output benchmarks/protocol.jsonl

Sections: `speed` (modes against plain decoding and against transformers' generate), `auto-long` (what `auto` costs over
a long text, whatever the text), `capacity` (a large cache of which little is used against a small one), `host` (host
work per token, by profiling). And, only where they are named: `protocol` (the paper's: long texts after prefixes of
books, with acceptance, n-gram share, time per window, Distinct-n, equality and audit) and `ablations` (one part of
drafting varied).

Figures are medians of --rounds runs with their smallest and largest value. The runs of a setting are interleaved: every
contender runs once a round on the same passage, and a ratio is the median of the rounds' ratios. `protocol` runs every
contender once, one after the other. Compilation is done in a warm-up or subtracted, prefill is stated apart. Run it on
a machine that does nothing else: rows carry the load. Rows of `protocol` and `ablations` that --output holds already,
of the same setting, machine and versions, are not measured again: a killed run is continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from benchmarking.ablations import ablations
from benchmarking.arguments import add_flags, make_settings
from benchmarking.environment import describe_environment, load_average
from benchmarking.protocol import protocol
from benchmarking.rowfile import RowFile
from benchmarking.sections import auto_long, capacity, host, speed
from benchmarking.table import format_table

import tokenswift_jax as ts
from tokenswift_jax import checkpoint
from tokenswift_jax.paths import check_writable

ROOT = Path(__file__).resolve().parent.parent
USUAL = {"speed": speed, "auto-long": auto_long, "capacity": capacity, "host": host}
SECTIONS = USUAL | {"protocol": protocol, "ablations": ablations}


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the rows as they come, prints the table; the exit status: 1 a failed audit, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, tuple(SECTIONS), tuple(USUAL))
    try:
        rows = run(parser.parse_args(argv))
    except ts.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    return int(any((row.get("audit") or {}).get("failed", False) for row in rows))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all sections asked for, which are also in the output file."""
    output = arguments.output
    if output is None:
        day = datetime.now(UTC).date().isoformat()
        output = ROOT / "benchmarks" / f"{day}-{jax.default_backend()}.jsonl"
        output.parent.mkdir(exist_ok=True)
    check_writable(output, "--output")
    settings = make_settings(arguments)
    model = settings.model
    common = describe_environment() | {
        "model": str(arguments.model or "the bundled demo"),
        "checkpoint": checkpoint.fingerprint(model.path)[:16],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": model.dtype,
        "quick": arguments.quick,
        "load_average_at_start": load_average(),
    }
    file = RowFile(output, common)
    for name in arguments.sections:
        SECTIONS[name](settings, file)
    return file.rows


if __name__ == "__main__":
    sys.exit(main())
