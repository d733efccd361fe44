"""A decoding step compiled ahead of time for a mesh of a whole machine's absent devices: its memory, its bytes and its
collectives on each of them."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax

from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
from tokenswift_jax.hardware.aot import ROOM, argument_bytes, compile_step, step_for
from tokenswift_jax.hardware.collectives import collectives_of
from tokenswift_jax.hardware.machines import MACHINES
from tokenswift_jax.hardware.roofline import step_cost
from tokenswift_jax.hardware.shapes import config_of
from tokenswift_jax.hardware.targets import devices
from tokenswift_jax.hardware.traffic import moved_bytes
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import attention_part
from tokenswift_jax.parallel.fit import fit
from tokenswift_jax.parallel.mesh import mesh_over
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.rules import bytes_on_each
from tokenswift_jax.parallel.step_time import Collective

DEPTHS = (2, 4)  # layers of the two programs whose figures are extended to a model's depth


@dataclass(frozen=True)
class Program:
    """Figures of a compiled program on each device.

    Attributes:
      layers: of the decoder.
      temporary: bytes.
      moved: bytes that a step reads and writes, those of our own kernels excepted.
      collectives: of a step.
    """

    layers: int
    temporary: int
    moved: int
    collectives: tuple[Collective, ...]


def extended(shallow: Program, deep: Program, layers: int) -> Program:
    """The figures at another depth: each grows by as much a layer as between two programs."""

    def at(first: float, second: float) -> int:
        return round(first + (second - first) * (layers - shallow.layers) / (deep.layers - shallow.layers))

    counts: dict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0, 0])
    for which, program in enumerate((shallow, deep)):
        for each in program.collectives:
            counts[each[:3]][which] += each.count
    collectives = tuple(Collective(*key, at(*both)) for key, both in sorted(counts.items()))
    temporary, moved = at(shallow.temporary, deep.temporary), at(shallow.moved, deep.moved)
    return Program(layers, temporary, moved, collectives)


def scaling_row(
    name: str, model: str, spec: MeshSpec, step: str, positions: int, depths: tuple[int, ...] = DEPTHS
) -> dict[str, Any]:
    """The row of a step (of `steps.STEPS`) of one text with so many committed positions on a machine's mesh.

    Args:
      name: of `machines.MACHINES`.
      model: of `shapes`.
      spec: the mesh.
      step: its name.
      positions: also the slots of the cache.
      depths: layers of the two programs that are compiled; () compiles the model's own, which must fit the devices.
    """
    machine = MACHINES[name]
    target = machine.described
    mesh, cyclic = mesh_over(devices(target), spec), Cyclic(spec.context) if spec.context > 1 else None

    def step_at(layers: int | None) -> Any:
        config = fitted(config_of(model, layers), spec)
        # On a mesh, the loader joins and stacks nothing.
        return config, step_for(target, step, config, positions, join=False, stack=False, cyclic=cyclic)

    def compiled(layers: int | None) -> Program:
        config, wanted = step_at(layers)
        program = compile_step(target, wanted, mesh, COMPILER_OPTIONS.get(target.kind, {}))
        text = program.as_text()
        temporary = program.memory_analysis().temp_size_in_bytes
        return Program(config.num_layers, temporary, moved_bytes(text), tuple(collectives_of(text)))

    config, whole = step_at(None)
    arguments, begun = argument_bytes(whole, mesh), time.perf_counter()
    programs = [compiled(layers) for layers in depths or (None,)]
    found = extended(programs[0], programs[1], config.num_layers) if depths else programs[0]
    seconds = time.perf_counter() - begun
    # The kernels read the live cache: each device its heads and its positions.
    cache = attention_part(config, whole.rows, positions, 2)[0] // (spec.model * spec.context)
    memory = arguments + found.temporary
    row = {
        "machine": name,
        "model": model,
        "mesh": str(spec),
        "step": step,
        "positions": positions,
        "devices": spec.devices,
        "argument_bytes": arguments,
        "temporary_bytes": found.temporary,
        "share_of_memory": round(memory / target.memory, 3),
        "missing_bytes": max(0, round(memory - ROOM * target.memory)),
        "step_bytes": found.moved + cache,
        "operations": step_cost(step, config_of(model), positions).operations // spec.devices,
        "collectives": [each._asdict() for each in found.collectives],
        "layers_compiled": [program.layers for program in programs],
        "layers": config.num_layers,
        "compile_seconds": round(seconds, 1),
        "date": str(datetime.date.today()),
        "jax": jax.__version__,
    }
    sizes = [1, *(count for count in (2, 4, 8) if count < machine.devices), machine.devices]
    stored = {count: bytes_on_each({"model": count}, whole.arguments) for count in sizes} if spec.context == 1 else {}
    row["devices_needed"] = next((n for n, each in stored.items() if each <= ROOM * target.memory), None)
    return row


def fitted(config: ModelConfig, spec: MeshSpec) -> ModelConfig:
    """The configuration that a mesh's devices share evenly."""
    found = fit(config, spec.model, spec.context)
    return config if found is None else found.config
