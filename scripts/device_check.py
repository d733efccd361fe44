"""One command for a machine with an accelerator: kernels, bandwidth, steps and where their time goes, sampling, goals,
the demo end to end, and transformers.

    python scripts/device_check.py                                   # everything, Llama-3.1-8B shapes, random weights
    python scripts/device_check.py --sections copy kernels steps     # some of it
    python scripts/device_check.py --output FILE.json                # goes on where FILE.json ends

Every section is made for less than five minutes on one H200 and needs nothing but this repository; what is missing
(torch, a network) is said in its row. Rows are written as they come; a section that was ended or failed is done again.
Leave JAX_PLATFORMS unset: the definitions are computed on the CPU beside the device. Without an accelerator the same
sections run on tiny shapes. `scripts/plot.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from benchmarking.environment import describe_environment, load_average
from hardware.option_trial import OPTIONS
from hardware.sections import SECTIONS, Check
from hardware.shapes import NAMES
from hardware.texts import FORCED, KINDS
from hardware.variants import JOINED

from tokenswift_jax.model import use_compilation_cache

# torch needs what jax would take in advance.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
STEPS = ("plain", "verify-16", "verify-16-topkp", "verify-64", "partial-16", "prefill")
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
    parser.add_argument("--demo-modes", nargs="+", choices=KINDS, default=list(FORCED), help="autoregressive first")
    parser.add_argument("--demo-dtypes", nargs="+", help="of the demo's texts (default: the device's own)")
    parser.add_argument("--demo-tokens", type=int, default=256 if _SMALL else 20480)
    parser.add_argument("--replayed-tokens", type=int, default=100_000)
    parser.add_argument("--acceptances", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), help="of XLA, tried out")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/<date>-device-<platform>.json)")
    parser.add_argument("--again", action="store_true", help="also the sections that the file already holds")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the sections in order, each written as it ends; 1 if one failed or a kernel is wrong."""
    arguments = parse_arguments(argv)
    use_compilation_cache()
    environment = describe_environment()
    default = f"{environment['date'][:10]}-device-{environment['platform']}.json"
    output = arguments.output or Path(__file__).parents[1] / "benchmarks" / default
    rows: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    good = True
    for name in arguments.sections:
        found = [row for row in rows if row["section"] == name]
        if found and not arguments.again and all(row["section_seconds"] and "error" not in row for row in found):
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
            demo_dtypes=tuple(arguments.demo_dtypes or (None,)),
            demo_tokens=arguments.demo_tokens,
            replayed_tokens=arguments.replayed_tokens,
            acceptances=tuple(arguments.acceptances),
            options=tuple(arguments.options),
            maps=(JOINED,),
            earlier=list(rows),
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
        begun = time.perf_counter()
        about = {"section": name, "section_seconds": None, **environment, "model": arguments.model}
        made: list[dict[str, Any]] = []
        for row in _until_it_fails(SECTIONS[name](check)):
            # Each as it comes: whoever ends this process keeps what it measured, and the section is done again.
            made.append({**about, "dtype": str(check.dtype), "load_average": load_average(), **row})
            print(f"{name}: {json.dumps(row)}", flush=True)
            _write(output, [*rows, *made])
        seconds = round(time.perf_counter() - begun, 1)
        rows += [row | {"section_seconds": seconds} for row in made]
        _write(output, rows)
        good &= not any("error" in row or row.get("good") is False or row.get("audit_failed") for row in made)
    return 0 if good else 1


def _until_it_fails(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, and where one cannot be made a last one that says why: other sections go on."""
    try:
        yield from rows
    except Exception as error:
        traceback.print_exc()
        yield {"error": f"{type(error).__name__}: {error}"}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    written = path.with_name(path.name + ".part")
    written.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    written.replace(path)  # whoever ends this process meanwhile leaves the file as it was


if __name__ == "__main__":
    sys.exit(main())
