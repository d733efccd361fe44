"""Meshes of devices: made from their written form, and the context in which programs run on one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.fit import fit
from tokenswift_jax.parallel.mesh_advice import MeshLimits, advice, nearest
from tokenswift_jax.parallel.mesh_spec import AXES, CONTEXT, DATA, MODEL, STAGE, MeshSpec
from tokenswift_jax.parallel.stages import filled

_Tree = TypeVar("_Tree")
# Each virtual device of a CPU waits in a collective with a thread of its own. Without enough threads, the collectives
# of two devices wait for each other forever (2 cores, 2 devices, some 200 steps).
_CPU_THREADS = "32"
_turn = threading.Lock()


def make_mesh(spec: MeshSpec, layers: int | None = None, kind: AxisType = AxisType.Explicit) -> Mesh | None:
    """The mesh of a specification over the first devices; None for one device.

    In several processes, as many of each process's, so that all of them run the programs.

    Args:
      spec: the sizes of its axes.
      layers: of the model, which the stages share; None: unknown.
      kind: with `Explicit` axes, the type of every array in a program says how devices split it, and JAX gathers
        nothing that the program does not name; with `Auto` axes, XLA derives the splits (a training step).

    Raises:
      UserError: the devices or the layers are too few, or the processes cannot share the mesh evenly; the message names
        the axes that are too large and a mesh that fits.
    """
    processes = jax.process_count()
    if spec.devices == 1 and processes == 1:
        return None
    devices, own, fits = jax.devices(), _by_process(), limits_here(layers)
    if layers is not None and spec.stage > layers:
        why = f"has more stages than the model has layers; mesh {nearest(spec, fits)} fits"
    elif spec.devices % processes:
        counted = "1 device" if spec.devices == 1 else f"{spec.devices} devices"
        why = f"has {counted}, which {processes} processes cannot share evenly; {advice(spec, fits)}"
    elif spec.devices > len(devices):
        found = "there is 1" if len(devices) == 1 else f"there are {len(devices)}"
        why = f"needs {spec.devices} devices, and {found}; {advice(spec, fits)}"
    elif spec.devices > fits.devices:
        share, least = spec.devices // processes, min(own, key=len)
        short = f"process {own.index(least)} has {len(least)}"
        why = f"needs {share} devices of each process, and {short}; {advice(spec, fits)}"
    else:
        share = spec.devices // processes
        return mesh_over([one for part in own for one in part[:share]], spec, kind)
    raise UserError(f"mesh {spec} {why}", ("mesh",))


def limits_here(layers: int | None = None) -> MeshLimits:
    """The limits that the devices of this run's processes, and a model of so many layers, set to a mesh."""
    own = _by_process()
    return MeshLimits(len(own) * min(map(len, own)), len(own), layers)


def mesh_over(devices: Sequence[Any], spec: MeshSpec, kind: AxisType = AxisType.Explicit) -> Mesh:
    """The mesh of a specification over the first of these devices; `make_mesh` says what `kind` is."""
    chosen = np.array(devices[: spec.devices]).reshape(spec.stage, spec.data, spec.context, spec.model)
    return Mesh(chosen, AXES, axis_types=(kind,) * len(AXES))


def give_threads() -> None:
    """Lets JAX start with enough threads for the virtual devices of a CPU, if there are any; call it before JAX has
    looked for devices."""
    settings: Any = jax.config  # its flags are attributes that no type declares
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or settings.jax_num_cpu_devices > 1:
        os.environ.setdefault("NPROC", _CPU_THREADS)


def notes_on(mesh: Mesh | None, config: ModelConfig) -> tuple[str, ...]:
    """Lines for a person: the sizes of a model that the mesh changes, and the devices that it leaves over."""
    if mesh is None:
        return ()
    fitted = fit(config, mesh.shape[MODEL], mesh.shape[CONTEXT])
    notes = [f"mesh {spec_of(mesh)}: {note}" for note in (fitted.notes if fitted is not None else ())]
    if (stages := mesh.shape[STAGE]) > 1:
        layers = filled(config, stages).num_layers
        if layers > config.num_layers:
            notes.append(f"mesh {spec_of(mesh)}: {config.num_layers} layers are filled up to {layers} with zeros")
        notes.append(
            f"mesh {spec_of(mesh)}: a step passes through {stages} stages of {layers // stages} layers one after the "
            "other, so decoding runs at the speed of one stage's devices"
        )
    return (*notes, *left_over(mesh))


def left_over(mesh: Mesh) -> tuple[str, ...]:
    """A line that names the devices outside a mesh; none without such devices."""
    idle = [device for device in jax.devices() if device not in {*mesh.devices.flat}]
    if not idle:
        return ()
    names = ", ".join(map(str, idle))
    return (f"mesh {spec_of(mesh)} uses {mesh.size} of {mesh.size + len(idle)} devices; left over: {names}",)


def run(program: Any, *arguments: Any) -> Any:
    """Calls a program, from `jax.jit` or compiled, on the mesh in use; there, one thread at a time sends one.

    Without the turns, two threads of a server could send two programs to two devices in different orders, and their
    collectives would wait for each other forever. A program is compiled before its turn: the others go on meanwhile.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return program(*arguments)
    if not isinstance(program, jax.stages.Compiled):
        program = program.lower(*arguments).compile()
    with _turn:
        return settled(mesh, program(*arguments))


def settled(mesh: Mesh | None, results: _Tree) -> _Tree:
    """Waits for the results of a program, where the next one must not begin before: on a mesh of virtual devices.

    Without the wait, programs queue up on a CPU, and their collectives wait for threads that others occupy.
    """
    if mesh is not None and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(results)
    return results


def spec_of(mesh: Mesh | None) -> MeshSpec:
    """The specification of a mesh."""
    return MeshSpec() if mesh is None else MeshSpec(*(mesh.shape[axis] for axis in (DATA, MODEL, CONTEXT, STAGE)))


def use(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """The context in which this thread traces and runs programs for a mesh; None changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _by_process() -> list[list[Any]]:
    """The devices of each process."""
    return [[one for one in jax.devices() if one.process_index == own] for own in range(jax.process_count())]
