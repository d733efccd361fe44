"""A server's mesh: which ones it may have, and lines that say where its arrays are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh_spec import CONTEXT, DATA, MODEL, AutoMesh, MeshArgument, MeshSpec, parse_mesh

if TYPE_CHECKING:
    from tokenswift_jax.model import Model
    from tokenswift_jax.serve.pool import Pool


def server_mesh(given: str, rows: int, length: int) -> MeshArgument:
    """The mesh of `load` for a server of `rows` texts at once, each of up to `length` positions.

    Raises:
      UserError: the argument names no mesh, or one with stages.
    """
    asked = parse_mesh(given, (DATA, MODEL, CONTEXT))
    if isinstance(asked, AutoMesh):
        return AutoMesh(rows=rows, length=length, stages=False)
    check_stages(asked)
    return given


def check_stages(mesh: MeshSpec) -> None:
    """Raises UserError for a mesh with stages."""
    if mesh.stage > 1:
        raise UserError(
            f"mesh {mesh}: a server has no stages: the program that sends a prompt through them depends on the "
            "prompt's length, so it cannot be compiled before the requests; use model or context",
            ("mesh",),
        )


def mesh_lines(model: Model, pools: Sequence[Pool], slots: Sequence[int]) -> list[str]:
    """For a person: the notes about the mesh, the numbers of `slots` that it rounds up, and the bytes on each device;
    on one device, why `auto` chose it, if it did."""
    from tokenswift_jax.engine.placement import Placement
    from tokenswift_jax.parallel.mesh import spec_of
    from tokenswift_jax.parallel.rules import bytes_on_each

    mesh, placement = model.mesh, Placement(model.mesh)
    lines, rounded = list(model.mesh_notes), [placement.rows(count) for count in slots]
    if mesh is None:
        return lines
    if rounded != list(slots):
        change = f"{','.join(map(str, slots))} slots are rounded up to {','.join(map(str, rounded))}"
        lines.append(f"mesh {spec_of(mesh)}: {change}, which {mesh.shape[DATA]} groups of devices share evenly")
    weights, caches = bytes_on_each(placement.sizes, model.params), sum(pool.bytes for pool in pools)
    bytes_each = f"{weights / 1e9:.2f} GB of weights and {caches / 1e9:.2f} GB of caches"
    lines.append(f"mesh {spec_of(mesh)}: each of {mesh.size} devices has {bytes_each}")
    return lines


def server_table(model: Model, pools: Sequence[Pool]) -> str:
    """The table of every array of a server (`parallel.report`)."""
    from tokenswift_jax.engine.placement import Placement
    from tokenswift_jax.parallel.report import mesh_table

    trees = {"parameters": model.params}
    for pool in pools:
        name = f"{pool.size.slots} x {pool.size.length}"
        trees |= {f"{name} {kind}": tree for kind, tree in pool.arrays().items()}
    return mesh_table(Placement(model.mesh).sizes, trees)
