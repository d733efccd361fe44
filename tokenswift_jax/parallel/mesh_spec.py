"""The written form of a mesh, such as "data=2,model=4": parsed without JAX, so that commands answer at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenswift_jax.errors import UserError, is_whole

DATA = "data"  # the rows of a batch
CONTEXT = "context"  # the length of the full cache
MODEL = "model"  # heads, the MLP's inner size and the vocabulary
AXES = (DATA, CONTEXT, MODEL)  # the last one joins neighbouring devices
TRAINING_AXES = (DATA, MODEL)
_LATER = ("stage",)
_FORMS = "data=2,model=4, or 4 for model=4, or auto"


@dataclass(frozen=True)
class AutoMesh:
    """The mesh `auto`.

    Attributes:
      rows: rows of a batch to expect.
      length: positions of a row to expect; None: as many as the model has.
    """

    rows: int = 1
    length: int | None = None


MeshArgument = str | int | Mapping[str, int] | AutoMesh | None


@dataclass(frozen=True)
class MeshSpec:
    """The sizes of a mesh's axes.

    Attributes:
      data: groups of devices; each group computes its own rows of a batch.
      model: devices of a group, which share the weights and the heads.
      context: parts of a group, each of `model` devices, which share the positions of the full cache and the MLPs.
    """

    data: int = 1
    model: int = 1
    context: int = 1

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return self.data * self.model * self.context

    def __str__(self) -> str:
        sizes = [f"{name}={getattr(self, name)}" for name in (DATA, MODEL, CONTEXT) if getattr(self, name) > 1]
        return ",".join(sizes) or "1"


def parse_mesh(given: MeshArgument, axes: Sequence[str] = AXES) -> MeshSpec | AutoMesh:
    """The mesh that an argument names; None is one device.

    Args:
      given: the argument.
      axes: the axes that the caller uses; errors name these.

    Raises:
      UserError: the argument names no mesh, or an axis that does not work yet.
    """
    if given is None:
        return MeshSpec()
    if given == "auto":
        return AutoMesh()
    if isinstance(given, AutoMesh):
        return given
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif is_whole(given, 1):
        pairs = [(MODEL, given)]
    elif isinstance(given, str) and re.fullmatch(r"[0-9]+|1(x1)+", given):
        pairs = [(MODEL, int(given.partition("x")[0]))]
    elif isinstance(given, str) and re.fullmatch(r"\w+=[0-9]+(,\w+=[0-9]+)*", given):
        pairs = [(name, int(size)) for name, size in (part.split("=") for part in given.split(","))]
    else:
        raise _wrong(given, f"it must be {_FORMS}")
    sizes: dict[str, int] = {}
    for name, size in pairs:
        if name in _LATER and size != 1:
            raise _wrong(given, f"the axis {name} does not work yet; axes that do: {', '.join(axes)}")
        if name not in (*AXES, *_LATER):
            raise _wrong(given, f"there is no axis {name}; axes: {', '.join(axes)}")
        if name in sizes:
            raise _wrong(given, f"the axis {name} appears twice")
        if not is_whole(size, 1):
            raise _wrong(given, f"the size of {name} must be a whole number of at least 1")
        sizes[name] = int(size)
    return MeshSpec(**{name: size for name, size in sizes.items() if name in AXES})


def _wrong(given: object, reason: str) -> UserError:
    shown = given if isinstance(given, str) else repr(given)
    return UserError(f"mesh {shown}: {reason}", arguments=("mesh",))
