"""The scaling table: models on whole machines, from steps compiled ahead of time.

    pip install -e '.[aot]'
    python -m tokenswift_jax.hardware.scaling_report --machine "8x H200" --model Llama-3.1-8B --output rows.json
    python -m tokenswift_jax.hardware.scaling_report --output rows.json --page docs/meshes.md      # compiles nothing

Times are expectations by a formula (`parallel/step_time.py`): nothing here was run on an accelerator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenswift_jax.hardware.machines import MACHINES
from tokenswift_jax.hardware.page import fill_file, table
from tokenswift_jax.hardware.shapes import config_of
from tokenswift_jax.hardware.targets import compile_without_hardware
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import layer_weights
from tokenswift_jax.parallel.mesh_spec import MeshSpec, parse_mesh
from tokenswift_jax.parallel.step_time import MESH_RATES, Collective, MeshRates, step_time

MODELS = ("Llama-3.1-8B", "Qwen2.5-14B", "Qwen2.5-32B", "Llama-3.1-70B")
POSITIONS = {"128K": 131072, "1M": 1048576}
CLAIMED_PREFILL = 1.2e6  # tokens a second of a 7B on eight devices, as claimed elsewhere
_KEYS = ("machine", "model", "mesh", "step", "positions")


def times(row: dict[str, Any]) -> dict[str, Any]:
    """The expected milliseconds of a row's step, and how many times the tokens that the machine gives if it decodes
    several texts, each on as few devices as it needs."""
    collectives = [Collective(**each) for each in row["collectives"]]
    rates = MACHINES[row["machine"]].rates
    time = step_time(rates, row["step_bytes"], collectives, row["operations"])
    found: dict[str, Any] = {
        "count": sum(each.count for each in collectives),
        "sent_bytes": sum(each.count * each.bytes for each in collectives),
        "ms": {part: round(1e3 * getattr(time, part), 3) for part in ("work", "latency", "sending", "total")},
    }
    needed = row["devices_needed"]
    if needed is not None:
        groups = row["devices"] / needed
        fewer = [each._replace(devices=needed) for each in collectives if needed > 1]
        alone = step_time(rates, row["step_bytes"] * groups, fewer, row["operations"] * groups).total
        found["replicas_gain"] = round(groups * time.total / alone, 2)
    return found


def prefill_ceiling(config: ModelConfig, rates: MeshRates, devices: int, positions: int = 0) -> float:
    """Tokens a second that devices multiply at most while they prefill a prompt of so many positions: bfloat16, all
    units busy, nothing sent, no LM head."""
    products = 2 * config.num_layers * layer_weights(config)
    attention = 4 * config.num_heads * config.head_dim * config.num_layers * positions / 2  # a token sees half of them
    return devices * rates.device.operations / (products + attention)


def prefill_table() -> str:
    """The ceiling of prefill for a 7B on eight devices, by kind and length of the prompt."""
    config, lengths = config_of("Yarn-Llama-2-7B"), (0, *POSITIONS.values())
    rows = []
    for name, rates in MESH_RATES.items():
        ceilings = [prefill_ceiling(config, rates, 8, length) for length in lengths]
        shown = [*(f"{each:,.0f}" for each in ceilings), f"{ceilings[0] / CLAIMED_PREFILL:.0%}"]
        rows.append([name.replace("v5 lite", "v5e").replace("v6", "v6e"), *shown])
    return table(["eight", "short prompts", "128K", "1M", "of the 1.2 million"], rows)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each step."""
    headings = ["machine", "model", "tokens", "mesh", "step", "layers", "memory", "GB a step", "collectives", "KB"]
    headings += ["own ms", "latency ms", "sending ms", "ms", "replicas"]
    return table(headings, map(_cells, rows))


def _cells(row: dict[str, Any]) -> list[str]:
    names = {positions: name for name, positions in POSITIONS.items()}
    layers = "all" if len(row["layers_compiled"]) == 1 else ", ".join(map(str, row["layers_compiled"]))
    missing = row["missing_bytes"]
    memory = f"{row['share_of_memory']:.0%}" + (f", {missing / 1e9:.0f} GB missing" if missing else "")
    gain, needed = row.get("replicas_gain"), row["devices_needed"]
    replicas = "" if gain is None or needed == row["devices"] else f"{row['devices'] // needed}: {gain:.1f}x"
    shown = [row["machine"], row["model"], names[row["positions"]], row["mesh"], row["step"], layers, memory]
    shown += [f"{row['step_bytes'] / 1e9:.2f}", f"{row['count']}", f"{row['sent_bytes'] / 1e3:.0f}"]
    return [*shown, *(f"{row['ms'][part]:.2f}" for part in ("work", "latency", "sending", "total")), replicas]


def main(argv: list[str] | None = None) -> int:
    """Compiles, prints a line for each step and adds it to the JSON file; with `--page` only writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", nargs="+", choices=MACHINES, default=list(MACHINES), metavar="NAME")
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--mesh", nargs="+", help="default: all devices on model")
    parser.add_argument("--step", nargs="+", default=["plain", "verify-16"])
    parser.add_argument("--whole", action="store_true", help="compile all layers, not two depths to extend")
    parser.add_argument("--tokens", nargs="+", choices=POSITIONS, default=list(POSITIONS))
    parser.add_argument("--output", type=Path, required=True, help="JSON file, added to")
    parser.add_argument("--page", type=Path, help="compile nothing: write the tables of --output's rows into a page")
    options = parser.parse_args(argv)
    rows = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else []
    if options.page is not None:
        rows = [row | times(row) for row in rows]
        _write(options.output, rows)
        fill_file(options.page, "scaling", as_table(rows))
        fill_file(options.page, "prefill", prefill_table())
        return 0
    compile_without_hardware()
    from tokenswift_jax.hardware.scaling import DEPTHS, scaling_row

    wanted = [
        (machine, model, mesh or f"model={MACHINES[machine].devices}", step, POSITIONS[tokens])
        for machine in options.machine
        for model in options.model
        for mesh in options.mesh or [None]
        for step in options.step
        for tokens in options.tokens
    ]
    for key in wanted:
        machine, model, mesh, step, positions = key
        spec = parse_mesh(mesh)
        assert isinstance(spec, MeshSpec)
        row = scaling_row(machine, model, spec, step, positions, () if options.whole else DEPTHS)
        row |= times(row)
        print(json.dumps(row), flush=True)
        rows = [old for old in rows if [old[name] for name in _KEYS] != [row[name] for name in _KEYS]] + [row]
        _write(options.output, rows)
    return 0


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
