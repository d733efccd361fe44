"""Compiles decoding for accelerators that need not be here, and reports their compilers' figures.

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
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # a checkout runs where it is not installed

from tokenswift_jax.hardware import ptx, targets  # noqa: E402
from tokenswift_jax.hardware.page import fill_file, table  # noqa: E402

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
    parser.add_argument("--layers", type=int, help="compile so many layers, fewer or more (default: the model's)")
    parser.add_argument("--default-options", action="store_true", help="compile without our options for XLA")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options for XLA beside ours")
    parser.add_argument("--capacity", type=int, default=131072, help="slots of the cache (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file, added to (default: benchmarks/<date>-aot.json)")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="PAGE",
        help="compile nothing: write --output's rows, with new bounds, into a page",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compiles, prints a line for each step and writes the JSON file; 1 if a program breaks its limits."""
    arguments = parse_arguments(argv)
    output = arguments.output or ROOT / "benchmarks" / f"{datetime.date.today()}-aot.json"
    rows = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    targets.compile_without_hardware()
    if arguments.table is not None:
        from tokenswift_jax.hardware.aot import bounds
        from tokenswift_jax.hardware.shapes import config_of

        for row in rows:
            config = config_of(row["model"], row["layers"])
            row["roofline"] = bounds(row["target"], config, row["step"], row["capacity"], row["devices"])
        _write(output, rows)
        fill_file(arguments.table, "aot", as_table(rows))
        return 0
    good = True
    chosen = {name: _BOOLEANS.get(value, value) for name, value in (each.split("=", 1) for each in arguments.option)}
    with tempfile.TemporaryDirectory() as folder:
        ptx.dump_programs(folder)
        from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
        from tokenswift_jax.hardware.aot import aot_row

        for target in arguments.target:
            ours = COMPILER_OPTIONS.get(targets.TARGETS[target].kind, {})
            options = ({} if arguments.default_options else ours) | chosen
            for model, step in ((model, step) for model in arguments.model for step in arguments.step):
                row = aot_row(target, model, step, arguments.layers, arguments.capacity, options, Path(folder))
                row |= {"date": str(datetime.date.today())} | ({"options": chosen} if chosen else {})
                print(json.dumps(row), flush=True)
                good &= row["good"]
                key = [row.get(name) for name in KEYS]
                rows = [old for old in rows if [old.get(name) for name in KEYS] != key] + [row]
                _write(output, rows)
    return 0 if good else 1


def as_table(rows: list[dict[str, Any]]) -> str:
    """One line a program, in the order of target, model and step."""
    headings = ("target", "model", "devices", "step", "memory", "temporary", "copied", "moved", "registers (spilled)")
    return table([*headings, *(f"{bound['length']:,}" for bound in rows[0]["roofline"])], map(_cells, rows))


def _cells(row: dict[str, Any]) -> list[Any]:
    kernels = row.get("kernels", {}).values()
    most, spilled = (max((k["registers"] for k in kernels), default=None), sum(k["spilled_bytes"] for k in kernels))
    layers = "" if row["layers_compiled"] == row["layers"] else f" ({row['layers_compiled']} layers)"
    shares = f"{row['share_of_memory']:.0%}", f"{row['temporary_share']:.2%}", f"{row['copied_share']:.1%}"
    registers = "" if most is None else f"{most} ({spilled})"
    times = (f"{bound['milliseconds']:.2f}" for bound in row["roofline"])
    start = row["target"], row["model"], row["devices"], row["step"] + layers
    return [*start, *shares, f"{row['moved_share']:.2f}", registers, *times]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
