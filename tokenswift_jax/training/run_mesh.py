"""The mesh of a training run, from its written form, and lines about it for a person."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh import give_threads, left_over, make_mesh
from tokenswift_jax.parallel.mesh_spec import (
    DATA,
    MODEL,
    TRAINING_AXES,
    AutoMesh,
    MeshArgument,
    MeshSpec,
    parse_mesh,
)
from tokenswift_jax.training.settings import TrainingSettings


def run_mesh(given: MeshArgument, settings: TrainingSettings) -> tuple[Mesh | None, tuple[str, ...]]:
    """The mesh that an argument names, None for one device, and the lines: why `auto` chose it, rows without work,
    devices left over.

    JAX must not have looked for devices before, if they are virtual ones of a CPU (`give_threads`).

    Raises:
      UserError: no mesh, one of an axis that training does not use, or of more devices than there are; several
        processes.
    """
    asked = parse_mesh(given, TRAINING_AXES)
    if asked != MeshSpec():
        give_threads()
    spec, lines = _chosen() if isinstance(asked, AutoMesh) else (asked, [])
    if spec.devices != spec.data * spec.model:
        raise UserError(
            f"mesh {spec}: training shares rows over {DATA} and matrices over {MODEL}, and over no other axis; "
            f"mesh {DATA}={min(spec.devices, jax.device_count())} fits",
            arguments=("mesh",),
        )
    if jax.process_count() > 1:
        raise UserError(
            "training runs in one process, and its mesh is of one machine's devices; start one", arguments=("mesh",)
        )
    # Losses read labels and windows by index; with `Explicit` axes, each of these reads would have to name its split.
    mesh = make_mesh(spec, kind=AxisType.Auto)
    if mesh is None:
        return None, tuple(lines)
    rows, groups = settings.batch_size, spec.data
    if rows % groups:
        full = rows + -rows % groups
        lines.append(
            f"mesh {spec}: {groups} groups of devices cannot share a batch_size of {rows} evenly; rows of padding fill "
            f"each micro-batch up to {full} and change no gradient, and a batch_size of {full} takes no longer"
        )
    return mesh, (*lines, *left_over(mesh))


def _chosen() -> tuple[MeshSpec, list[str]]:
    """The mesh `auto`: all accelerators along the data axis, which divides the state of the run and the rows."""
    devices = jax.devices()
    kind, count = devices[0].device_kind, len(devices)
    if count == 1:
        return MeshSpec(), [f"mesh auto: 1, since there is one device ({kind})"]
    if devices[0].platform == "cpu":
        return MeshSpec(), [f"mesh auto: 1, since the {count} virtual devices share one CPU and its memory"]
    return MeshSpec(data=count), [f"mesh auto: {DATA}={count}, all devices ({kind})"]
