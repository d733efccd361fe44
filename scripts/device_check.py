"""One command for a machine with an accelerator: kernels, bandwidth, steps and where their time goes, sampling, goals,
transformers, and the demo end to end.

    python scripts/device_check.py                                   # everything, Llama-3.1-8B shapes, random weights
    python scripts/device_check.py --sections copy kernels steps     # some of it
    python scripts/device_check.py --output FILE.json                # goes on where FILE.json ends

Every section takes less than five minutes on one H200 and needs nothing but this repository; what is missing (torch, a
network) is said in its row. Without an accelerator the same sections run on tiny shapes. `scripts/plot.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from benchmarking.environment import describe_environment, load_average
from hardware.sections import SECTIONS, Check
from hardware.shapes import NAMES

from tokenswift_jax.speculation import MODES

STEPS = ("plain", "verify-16", "verify-64", "partial-16", "prefill")
_SMALL = jax.default_backend() == "cpu"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script; what a machine without an accelerator does by default is small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = [512, 2048] if _SMALL else [4096, 16384, 32768, 65536, 126976]
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--model", choices=NAMES, default="tiny" if _SMALL else "Llama-3.1-8B")
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="committed tokens")
    parser.add_argument("--copied-bytes", type=int, default=2**26 if _SMALL else 2**32)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--demo-modes", nargs="+", choices=MODES, default=list(MODES), help="autoregressive first")
    parser.add_argument("--demo-tokens", type=int, default=256 if _SMALL else 20480)
    parser.add_argument("--replayed-tokens", type=int, default=100_000)
    parser.add_argument("--acceptances", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/<date>-device-<platform>.json)")
    parser.add_argument("--again", action="store_true", help="also the sections that the file already holds")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the sections in order, each written as it ends; 1 if one failed or a kernel is wrong."""
    arguments = parse_arguments(argv)
    environment = describe_environment()
    default = f"{environment['date'][:10]}-device-{environment['platform']}.json"
    output = arguments.output or Path(__file__).parents[1] / "benchmarks" / default
    rows: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    good = True
    for name in arguments.sections:
        if not arguments.again and any(row["section"] == name and "error" not in row for row in rows):
            print(f"{name}: done before", file=sys.stderr)
            continue
        rows = [row for row in rows if row["section"] != name]
        check = Check(
            model=arguments.model,
            lengths=tuple(arguments.lengths),
            capacity=-(-(max(arguments.lengths) + 2048) // 256) * 256,
            copied_bytes=arguments.copied_bytes,
            steps=tuple(arguments.steps),
            demo_modes=tuple(arguments.demo_modes),
            demo_tokens=arguments.demo_tokens,
            replayed_tokens=arguments.replayed_tokens,
            acceptances=tuple(arguments.acceptances),
            earlier=list(rows),
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
        begun, made = time.perf_counter(), []
        try:
            made.extend(SECTIONS[name](check))
        except Exception as error:  # what one section cannot do must not cost the others
            traceback.print_exc()
            made.append({"error": f"{type(error).__name__}: {error}"})
        seconds = round(time.perf_counter() - begun, 1)
        about = {"section": name, "section_seconds": seconds, "load_average": load_average(), **environment}
        about |= {"model": arguments.model, "dtype": str(check.dtype)}
        rows += [{**about, **row} for row in made]
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        for row in made:
            print(f"{name}: {json.dumps(row)}", flush=True)
        good &= not any("error" in row or row.get("good") is False or row.get("audit_failed") for row in made)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
