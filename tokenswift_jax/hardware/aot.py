"""One step of one model, compiled ahead of time for one target, and the compiler's figures of it."""

from __future__ import annotations

import dataclasses
import time
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from pallas_kernels.gpus import A100, H200
from pallas_kernels.implementation import compiling_for
from tokenswift_jax.hardware import ptx, roofline, shapes, steps
from tokenswift_jax.hardware.copies import large_arrays
from tokenswift_jax.hardware.launches import dumped_launches
from tokenswift_jax.hardware.program_text import array_bytes
from tokenswift_jax.hardware.targets import TARGETS, Target, devices
from tokenswift_jax.hardware.traffic import iteration_bytes, moved_bytes
from tokenswift_jax.kv.dense import cache_bytes
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.mesh import mesh_over
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.rules import shardings

LENGTHS = (4096, 16384, 65536, 126976)
_SMALL_COPY = 2**20  # bytes
# Of the bytes that a program must move, at most, by all its copies that are not small. Prefill is bound by arithmetic,
# and chips whose on-chip memory is small lay out a chunk's queries and results for the kernel in the large one.
COPIED, PREFILL_COPIED = 0.01, 0.1
TEMPORARY_SHARE = 0.05  # of the cache, at most
# Of the bytes that one row must move, at most. Several rows' programs also write and read sums of split products, which
# second-level caches hold; the device chooses the splits.
MOVED = 1.05
# Kernels and copies of an iteration of two layers on an H200, at most: as counted with jax 0.10.2 and 0.11.2, so one
# kernel more is too many. The host launches one graph a chunk and waits for nothing: loops run within it. Top-k and
# top-p add at most 7 to each of an iteration's two draws, which have 12 or fewer from the logits to the drawn tokens.
MOST_NODES = {
    "Llama-3.1-8B": {"plain": 49, "verify-16": 81, "verify-16-topkp": 92, "verify-64": 88, "partial-16": 121},
    "Qwen2.5-1.5B": {"plain": 47, "verify-16": 83, "verify-16-topkp": 97, "verify-64": 90, "partial-16": 117},
}
ROOM = 0.92  # of a device's memory, that weights and cache may take
DTYPE = jnp.dtype(jnp.bfloat16)
KERNELS = ("tree_attention", "sparse_attention", "cache_scores", "shortlist_edges", "flash_attention", "mosaic_gpu")
KERNELS += ("add_norm", "rotate_write", "draft_tree", "commit_text", "ngram_table")
_ARCHITECTURES = {"a100": "sm_80", "h200": "sm_90a"}
_GPUS = {TARGETS["a100"]: A100, TARGETS["h200"]: H200}


def aot_row(
    name: str, model: str, step: str, layers: int | None, capacity: int, options: dict[str, Any], dumped: Path
) -> dict[str, Any]:
    """The row of one step; `good` is true if the step keeps all limits.

    Args:
      name: of the target.
      model: of its shapes.
      step: of `steps.STEPS`.
      layers: how many are compiled, None for all; arguments, cache and roofline are the whole model's, or those of a
        deeper one of so many layers.
      capacity: slots of the cache.
      options: of XLA.
      dumped: where XLA and Mosaic GPU put PTX, and XLA its lists of thunks.

    Raises:
      LookupError: there is no PTX of a GPU's kernels, so the spills are unknown.
    """
    target, config = TARGETS[name], shapes.config_of(model, layers)
    full_config = max(config, shapes.config_of(model), key=lambda each: each.num_layers)
    count = devices_needed(target, full_config, capacity)
    wanted = step_for(target, step, config, capacity)
    # A run on one device has no mesh. Here one names the device; with `Auto` axes, arrays have the types of such a run.
    kind = AxisType.Explicit if count > 1 else AxisType.Auto
    mesh = mesh_over(devices(target), MeshSpec(model=count), kind)
    for old in (path for path in dumped.iterdir() if path.is_file()):
        old.unlink()
    begun = time.perf_counter(), time.process_time()
    compiled = compile_step(target, wanted, mesh, options)
    seconds, of_cores = time.perf_counter() - begun[0], time.process_time() - begun[1]
    memory = compiled.memory_analysis()
    cache = cache_bytes(config, 1, capacity, DTYPE) // count
    full_cache_bytes = cache_bytes(full_config, 1, capacity, DTYPE) // count
    arguments = argument_bytes(step_for(target, step, full_config, capacity), mesh)
    text = compiled.as_text()
    made = large_arrays(text, cache // (2 * config.num_layers))
    # Copies also of weights, tables and draft caches, which are smaller than a layer's cache.
    copies = [entry for entry in large_arrays(text, _SMALL_COPY) if entry.startswith("copy ")]
    caches = [entry for entry in made if " bf16[" in entry]
    # On one device, of the compiled layers, without our kernels and the cache that they read: a chunk of one iteration.
    moved, least = moved_bytes(text), roofline.step_cost(step, config, 0).bytes
    least = (least + roofline.chunk_cost(step, config).bytes) // count
    row: dict[str, Any] = {
        "target": name,
        "model": model,
        "step": step,
        "layers_compiled": config.num_layers,
        "layers": full_config.num_layers,
        "capacity": capacity,
        "devices": count,
        "compile_seconds": round(seconds, 1),
        "compile_core_seconds": round(of_cores, 1),
        "argument_bytes": arguments,
        "cache_bytes": full_cache_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "temporary_share": round(memory.temp_size_in_bytes / full_cache_bytes, 4),
        "cache_is_donated": memory.alias_size_in_bytes >= cache,
        "copies": copies,
        "copied_share": round(sum(map(array_bytes, copies)) / least, 4),
        "cache_copies": caches,
        "other_large_arrays": [entry for entry in made if entry not in (*copies, *caches)],
        "moved_bytes": moved,
        "least_moved_bytes": least,
        "iteration_bytes": iteration_bytes(text),
        "moved_share": round(moved / least, 3),
        "share_of_memory": round((arguments + memory.temp_size_in_bytes) / target.memory, 3),
        "roofline": bounds(name, full_config, step, capacity, count),
        "jax": jax.__version__,
    }
    ordered = True
    if target.kind == "gpu":
        row["kernels"] = ptx.kernel_registers(dumped, _ARCHITECTURES[name], KERNELS)
        launched = dumped_launches(dumped)
        row["launches"] = launched and dataclasses.asdict(launched)
        ordered = launched is None or launched.unordered == 0
    logits = 4 * wanted.rows * config.vocab_size if wanted.plan else 0
    spilled = any(kernel["spilled_bytes"] for kernel in row.get("kernels", {}).values())
    small = memory.temp_size_in_bytes <= TEMPORARY_SHARE * full_cache_bytes + logits
    once = wanted.rows > 1 or moved <= MOVED * least
    fits = row["share_of_memory"] <= 1
    few = not caches and row["copied_share"] <= (COPIED if wanted.plan else PREFILL_COPIED)
    row["good"] = bool(row["cache_is_donated"] and small and once and fits and few and not spilled and ordered)
    if name == "h200":
        row["good"] &= few_launches(model, step, config.num_layers, row.get("launches"))
    return row


def step_for(target: Target, name: str, config: ModelConfig, capacity: int, **more: Any) -> steps.Step:
    """The step with the arguments that it has on the target: a CPU's caches contain more. `more` as in
    `steps.step_named`."""
    options: dict[str, Any] = {"join": target.kind == "gpu"} | more
    with compiling_for(target.kind, gpu=_GPUS.get(target)):
        return steps.step_named(name, config, capacity, DTYPE, **options)


def few_launches(model: str, step: str, layers: int, launches: dict[str, int] | None) -> bool:
    """Whether an iteration on an H200 has no more than MOST_NODES, and the host launches and awaits nothing in it.

    True where nothing is known: of other models, steps and numbers of layers, and where XLA dumped no list of thunks.
    """
    most = MOST_NODES.get(model, {}).get(step)
    if launches is None or layers != 2 or most is None:
        return True
    return launches["nodes"] <= most and launches["graphs"] == launches["waits"] == 0


def argument_bytes(step: steps.Step, mesh: Mesh) -> int:
    """Bytes of a step's arguments on one device of a mesh."""
    parts = zip(jax.tree.leaves(step.arguments), jax.tree.leaves(shardings(mesh, step.arguments)), strict=True)
    return sum(prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in parts)


def compile_step(target: Target, step: steps.Step, mesh: Mesh, options: dict[str, Any]) -> Any:
    """The step, compiled with XLA's `options` and split over a mesh of the target's devices."""
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        step.arguments,
        shardings(mesh, step.arguments),
    )
    gpu = _GPUS.get(target)
    with compiling_for(target.kind, gpu=gpu), jax.set_mesh(mesh):
        return step.function.lower(*placed).compile(compiler_options=options)


def devices_needed(target: Target, config: ModelConfig, capacity: int) -> int:
    """The fewest devices, of a power of two, that hold weights and cache."""
    needed = roofline.parameter_bytes(config) + cache_bytes(config, 1, capacity, DTYPE)
    for count in (1, 2, 4, 8):
        if needed <= ROOM * target.memory * count and config.num_kv_heads % count == 0:
            return count
    raise SystemExit(f"error: {needed / 1e9:.0f} GB do not fit 8 devices of {target.memory / 1e9:.0f} GB")


def bounds(name: str, config: ModelConfig, step: str, capacity: int, count: int) -> list[dict[str, Any]]:
    """The roofline of a step on so many of a target's devices, by length."""
    found = []
    for length in (length for length in LENGTHS if length < capacity):
        cost = roofline.step_cost(step, config, length)
        least = round(1e3 * cost.seconds(TARGETS[name], count), 4)
        found.append({"length": length, "bytes": cost.bytes, "operations": cost.operations, "milliseconds": least})
    return found
