"""A mesh that fits in place of one that does not: of those with no axis larger, the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tokenswift_jax.parallel.mesh_spec import AXES, CONTEXT, DATA, MODEL, STAGE, MeshSpec

_KEPT_FIRST = (MODEL, CONTEXT, STAGE, DATA)  # of equally near meshes, the one with more devices on the earlier axes


class MeshLimits(NamedTuple):
    """The limits of a mesh.

    Attributes:
      devices: the most that it may have.
      processes: which share its devices evenly.
      layers: of the model, which its stages share; None: unknown.
    """

    devices: int
    processes: int = 1
    layers: int | None = None


def advice(spec: MeshSpec, limits: MeshLimits) -> str:
    """The end of a message about a mesh that does not fit: the axes that are too large, and a mesh that fits."""
    near = nearest(spec, limits)
    if near is None:
        return f"mesh {MODEL}={limits.devices} fits"
    large = [axis for axis in AXES if getattr(near, axis) < getattr(spec, axis)]
    verb = "is" if len(large) == 1 else "are"
    return f"{' and '.join(large)} {verb} too large: mesh {near} fits"


def nearest(spec: MeshSpec, limits: MeshLimits) -> MeshSpec | None:
    """The mesh with the fewest axes smaller than in `spec`, and of those the most devices; None where only a larger
    axis makes one that fits."""

    def distance(sizes: dict[str, int]) -> tuple:
        changed = sum(size < getattr(spec, axis) for axis, size in sizes.items())
        return changed, -MeshSpec(**sizes).devices, *(-sizes[axis] for axis in _KEPT_FIRST)

    fitting = (sizes for sizes in _smaller(spec, limits) if MeshSpec(**sizes).devices % limits.processes == 0)
    found = min(fitting, key=distance, default=None)
    return None if found is None else MeshSpec(**found)


def _smaller(spec: MeshSpec, limits: MeshLimits, axes: tuple[str, ...] = AXES) -> Iterator[dict[str, int]]:
    """The sizes of all meshes of at most the devices, with no axis larger than that of `spec`."""
    if not axes:
        yield {}
        return
    axis, *others = axes
    most = min(getattr(spec, axis), limits.devices)
    if axis == STAGE and limits.layers is not None:
        most = min(most, limits.layers)
    for size in range(1, most + 1):
        for rest in _smaller(spec, limits._replace(devices=limits.devices // size), tuple(others)):
            yield {axis: size, **rest}
