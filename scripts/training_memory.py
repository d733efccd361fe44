"""Memory of the training step for Llama-3.1-8B shapes, from ahead-of-time compilation: no accelerator is needed.

    pip install libtpu jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm    # compilers, no drivers
    python scripts/training_memory.py --device h200 v5p --head-type sequential chained

The step is the one that `tokenswift_jax.train` runs: heads trained in float32 over a frozen bfloat16 backbone. Its
memory is what XLA's compiler assigns; buffers of the runtime itself and the checkpoints in flight come on top.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

from hardware.targets import TARGETS, compile_without_hardware, devices

MODEL, LAYERS = "Llama-3.1-8B", 32
DEVICES = ("h200", "v5p")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--head-type", nargs="+", choices=("sequential", "chained"), default=["sequential", "chained"])
    parser.add_argument("--layers", type=int, nargs="+", default=[32], help="depths to compile; 32 from two by a line")
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a micro-batch")
    parser.add_argument("--loss-chunk", type=int, default=512)
    parser.add_argument("--distill-weight", type=float, default=0.0)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/<date>-training-memory.json)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compiles, prints a line for each step and writes the JSON file; 1 if a step does not fit its device."""
    arguments = parse_arguments(argv)
    at_depth([(layers, 0) for layers in arguments.layers], LAYERS)  # before minutes of work
    compile_without_hardware()
    rows = []
    for name in arguments.device:
        for head_type in arguments.head_type:
            rows.append(measure(arguments, name, head_type))
            print(json.dumps(rows[-1]), flush=True)
    default = Path(__file__).parents[1] / "benchmarks" / f"{datetime.date.today()}-training-memory.json"
    output = arguments.output or default
    output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["fits"] for row in rows) else 1


def measure(arguments: argparse.Namespace, name: str, head_type: str) -> dict[str, Any]:
    """What one step takes on one device, as a JSON row; bytes."""
    import jax

    from tokenswift_jax.training.settings import TrainingSettings

    settings = TrainingSettings(
        head_type=head_type,
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        gradient_accumulation_steps=2,  # more than one: gradients are then summed in a buffer of their own
        max_steps=200,
        epochs=None,
        loss_chunk=arguments.loss_chunk,
        distill_weight=arguments.distill_weight,
        dtype="bfloat16",
    )
    compiled = []
    for layers in arguments.layers:
        begun = time.perf_counter()
        analysis = compile_step(name, settings, layers).memory_analysis()
        memory = {
            "arguments": analysis.argument_size_in_bytes,
            "outputs_not_aliased": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
        }
        seconds = round(time.perf_counter() - begun, 1)
        compiled.append({"layers": layers, "compile_seconds": seconds, **memory, "total": sum(memory.values())})
    total = at_depth([(entry["layers"], entry["total"]) for entry in compiled], LAYERS)
    return {
        "device": name,
        "model": f"{MODEL} shapes, frozen bfloat16 backbone",
        "head_type": head_type,
        "settings": {
            field: getattr(settings, field) for field in ("max_length", "batch_size", "loss_chunk", "distill_weight")
        },
        "compiled": compiled,
        "layers": LAYERS,
        "extrapolated": LAYERS not in arguments.layers,
        "total": total,
        "device_memory": TARGETS[name].memory,
        "share": round(total / TARGETS[name].memory, 3),
        "fits": total <= TARGETS[name].memory,
        "jax": jax.__version__,
    }


def at_depth(points: list[tuple[int, int]], layers: int) -> int:
    """The bytes at a depth: measured there, else on the line through the first and the last (layers, bytes)."""
    if layers in dict(points):
        return dict(points)[layers]
    (low, below), (high, above) = points[0], points[-1]
    if low == high:
        raise SystemExit(f"error: --layers {low} alone does not say what {layers} layers take; give two depths")
    return round(below + (above - below) / (high - low) * (layers - low))


def compile_step(name: str, settings: Any, layers: int) -> Any:
    """The compiled training step of a Llama-3.1-8B with this many layers, for a device that need not be here."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from hardware.shapes import config_of

    from tokenswift_jax.models.decoder import Decoder
    from tokenswift_jax.training.optimizer import make_optimizer
    from tokenswift_jax.training.step import TrainState, make_step
    from tokenswift_jax.training.windows import Batch

    config = config_of(MODEL, layers)
    config = dataclasses.replace(config, num_draft_heads=settings.heads, draft_head_type=settings.head_type)
    dtype = jnp.dtype(jnp.bfloat16)
    shell = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, heads, backbone = nnx.split(shell, nnx.PathContains("draft_heads"), ...)
    optimizer = make_optimizer(settings, settings.max_steps)

    def first_state(heads: Any) -> TrainState:
        params = {"heads": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), heads)}
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    state = jax.eval_shape(first_state, heads)
    rows = jax.ShapeDtypeStruct(
        (settings.gradient_accumulation_steps, settings.batch_size, settings.max_length), jnp.int32
    )
    place = jax.sharding.SingleDeviceSharding(device(name))
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        (state, backbone, Batch(rows, rows, rows)),
    )
    return make_step(graph, settings, optimizer, dtype).lower(*placed).compile()


def device(name: str) -> Any:
    """A description of one H200 or one v5p chip that programs can be compiled for."""
    return devices(TARGETS[name])[0]


if __name__ == "__main__":
    sys.exit(main())
