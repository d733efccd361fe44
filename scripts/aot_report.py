"""Compiles decoding for accelerators that need not be here, and reports what their compilers say of it.

    pip install -e '.[aot]'
    python scripts/aot_report.py --target v5e h200 --model Llama-3.1-8B --step plain verify-16

For each target, model and step: bytes of arguments and of temporary memory on one device, arrays as large as a layer's
cache that the program copies (there should be none), registers and spills of GPU kernels and what the host launches
in an iteration, and the roofline: bytes, operations, and the time that the target's data sheet allows. Nothing here was
run or measured on an accelerator.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

from hardware import targets
from hardware.ptx import DUMP_FLAG
from hardware.table import write_table

MODELS = ("Llama-3.1-8B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-14B", "Yarn-Llama-2-7B")
STEPS = ("plain", "verify-16", "verify-16-topkp", "verify-64", "draft", "partial-16", "prefill")
_BOOLEANS = {"true": True, "false": False}  # in XLA_FLAGS' spelling, which options given by name do not take
KEYS = ("target", "model", "step", "layers_compiled", "capacity", "options")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(targets.TARGETS)
    parser.add_argument("--target", nargs="+", choices=names, default=names)
    parser.add_argument("--model", nargs="+", choices=[*MODELS, "tiny"], default=list(MODELS))
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--layers", type=int, help="compile so many layers; the default is all")
    parser.add_argument("--default-options", action="store_true", help="without our options for XLA: what they save")
    parser.add_argument(
        "--option",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of XLA, added to ours; rows are kept beside those without",
    )
    parser.add_argument("--capacity", type=int, default=131072, help="slots of the cache")
    parser.add_argument("--output", type=Path, help="JSON file, added to (default: benchmarks/<date>-aot.json)")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="PAGE",
        help="compile nothing; compute the roofline of --output's rows again and write them into a page",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compiles, prints a line for each step and writes the JSON file; 1 if any falls short of what it must be."""
    arguments = parse_arguments(argv)
    default = Path(__file__).parents[1] / "benchmarks" / f"{datetime.date.today()}-aot.json"
    output = arguments.output or default
    rows = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    targets.compile_without_hardware()
    if arguments.table is not None:
        from hardware.aot import bounds

        for row in rows:
            row["roofline"] = bounds(row["target"], row["model"], row["step"], row["capacity"], row["devices"])
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_table(rows, arguments.table)
        return 0
    good = True
    chosen = {name: _BOOLEANS.get(value, value) for name, value in (each.split("=", 1) for each in arguments.option)}
    with tempfile.TemporaryDirectory() as dumped:
        os.environ["MOSAIC_GPU_DUMP_TO"] = dumped  # what XLA does not compile itself
        # Read when XLA starts.
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dumped} {DUMP_FLAG} {os.environ.get('XLA_FLAGS', '')}"
        # Without this a program that was compiled before is read from a file, and XLA dumps nothing of it.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        from hardware.aot import report

        from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS

        for target in arguments.target:
            ours = COMPILER_OPTIONS.get(targets.TARGETS[target].kind, {})
            options = ({} if arguments.default_options else ours) | chosen
            for model in arguments.model:
                for step in arguments.step:
                    row = report(target, model, step, arguments.layers, arguments.capacity, options, Path(dumped))
                    row |= {"options": chosen} if chosen else {}
                    print(json.dumps(row), flush=True)
                    good &= row["good"]
                    key = [row.get(name) for name in KEYS]
                    rows = [old for old in rows if [old.get(name) for name in KEYS] != key] + [row]
                    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
