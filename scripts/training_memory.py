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
import os
import sys
import time
from pathlib import Path
from typing import Any

LLAMA_3_1_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
# Bytes of one device: NVIDIA's data sheet for the H200 (141 GB), Google's for the v5p (95 GiB a chip).
DEVICE_BYTES = {"h200": 141 * 10**9, "v5p": 95 * 2**30}
# What XLA's GPU compiler wants to know of a GPU that is not there.
_H200 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 141000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 } device_description_str: "NVIDIA H200" """


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=list(DEVICE_BYTES), default=list(DEVICE_BYTES))
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
    at_depth([(layers, 0) for layers in arguments.layers], LLAMA_3_1_8B["num_hidden_layers"])  # before minutes of work
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Or libtpu looks for the chips and the metadata server of a TPU machine.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
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
    whole = LLAMA_3_1_8B["num_hidden_layers"]
    total = at_depth([(entry["layers"], entry["total"]) for entry in compiled], whole)
    return {
        "device": name,
        "model": "Llama-3.1-8B shapes, frozen bfloat16 backbone",
        "head_type": head_type,
        "settings": {
            field: getattr(settings, field) for field in ("max_length", "batch_size", "loss_chunk", "distill_weight")
        },
        "compiled": compiled,
        "layers": whole,
        "extrapolated": whole not in arguments.layers,
        "total": total,
        "device_memory": DEVICE_BYTES[name],
        "share": round(total / DEVICE_BYTES[name], 3),
        "fits": total <= DEVICE_BYTES[name],
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

    from tokenswift_jax.models.decoder import Decoder
    from tokenswift_jax.models.hf_config import model_config
    from tokenswift_jax.training.optimizer import make_optimizer
    from tokenswift_jax.training.step import TrainState, make_step
    from tokenswift_jax.training.windows import Batch

    config = model_config(LLAMA_3_1_8B | {"num_hidden_layers": layers})
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
    from jax.experimental import topologies

    if name == "h200":
        described = topologies.get_topology_desc(
            topology_name="h200", platform="cuda", topology="1x1x1", target_config=_H200
        )
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
    return described.devices[0]


if __name__ == "__main__":
    sys.exit(main())
