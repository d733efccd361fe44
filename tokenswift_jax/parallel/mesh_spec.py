"""The written form of a mesh, such as "data=2,model=4": parsed without JAX, so that commands answer at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenswift_jax.errors import UserError, check_whole, is_whole

STAGE = "stage"  # the layers
DATA = "data"  # the rows of a batch
CONTEXT = "context"  # the length of the full cache, and with the next axis inner sizes and the vocabulary
MODEL = "model"  # heads
AXES = (STAGE, DATA, CONTEXT, MODEL)  # the last one joins neighbouring devices, the first one exchanges least
TRAINING_AXES = (DATA, MODEL)
_CHUNKS = 8, 2  # of a prompt, for each stage: by default, and at least
_FORMS = "data=2,model=4, or 4 for model=4, or auto"


@dataclass(frozen=True)
class AutoMesh:
    """The mesh `auto`.

    Attributes:
      rows: rows of a batch to expect.
      length: positions of a row to expect; None: as many as the model has.
      stages: whether it may have stages.
    """

    rows: int = 1
    length: int | None = None
    stages: bool = True


MeshArgument = str | int | Mapping[str, int] | AutoMesh | None


@dataclass(frozen=True)
class MeshSpec:
    """The sizes of a mesh's axes.

    Attributes:
      data: groups of devices; each group computes its own rows of a batch.
      model: devices of a group, which share the weights and the heads.
      context: parts of a group, each of `model` devices, which share the positions of the full cache, the MLPs and the
        vocabulary.
      stage: parts of the whole, each of `data * model * context` devices, which have different layers.
    """

    data: int = 1
    model: int = 1
    context: int = 1
    stage: int = 1

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return self.data * self.model * self.context * self.stage

    def __str__(self) -> str:
        sizes = [f"{name}={getattr(self, name)}" for name in (DATA, MODEL, CONTEXT, STAGE) if getattr(self, name) > 1]
        return ",".join(sizes) or "1"


def parse_mesh(given: MeshArgument, axes: Sequence[str] = AXES) -> MeshSpec | AutoMesh:
    """The mesh that an argument names; None is one device.

    Args:
      given: the argument.
      axes: the axes that the caller uses; errors name these.

    Raises:
      UserError: the argument names no mesh.
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
    elif isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}|1(x1)+", given):
        pairs = [(MODEL, int(given.partition("x")[0]))]
    elif isinstance(given, str) and re.fullmatch(r"\w+=[0-9]{1,9}(,\w+=[0-9]{1,9})*", given):
        pairs = [(name, int(size)) for name, size in (part.split("=") for part in given.split(","))]
    else:
        spaces = ", without spaces" if isinstance(given, str) and re.search(r"\s", given) else ""
        raise _wrong(given, f"it must be {_FORMS}{spaces}")
    sizes: dict[str, int] = {}
    for name, size in pairs:
        if name not in AXES:
            raise _wrong(given, f"there is no axis {name}; axes: {', '.join(axes)}")
        if name in sizes:
            raise _wrong(given, f"the axis {name} appears twice")
        if not is_whole(size, 1):
            raise _wrong(given, f"the size of {name} must be a whole number of at least 1")
        sizes[name] = int(size)
    return MeshSpec(**sizes)


def prompt_chunks(mesh: MeshSpec | AutoMesh, pipeline_depth: int | None) -> int | None:
    """The chunks in which a prompt goes through the stages of a mesh; None: it has no stages, or is not chosen yet.

    Args:
      mesh: the mesh.
      pipeline_depth: as many as the caller wants; None: 8 for each stage.

    Raises:
      UserError: a mesh without stages, or fewer than two for each stage.
    """
    if isinstance(mesh, AutoMesh):
        return None
    if mesh.stage == 1:
        if pipeline_depth is not None:
            raise UserError(
                f"pipeline_depth {pipeline_depth} has no use on the mesh {mesh}, which has no axis {STAGE}; leave it "
                "out",
                arguments=("pipeline_depth",),
            )
        return None
    usual, least = (each * mesh.stage for each in _CHUNKS)
    if pipeline_depth is not None:
        check_whole("pipeline_depth", pipeline_depth, 1)
        if pipeline_depth < least:
            raise UserError(
                f"pipeline_depth {pipeline_depth} is too small for the {mesh.stage} stages of the mesh {mesh}; "
                f"it must be at least {least}, and {usual} is the default",
                arguments=("pipeline_depth",),
            )
    return pipeline_depth or usual


def _wrong(given: object, reason: str) -> UserError:
    shown = given if isinstance(given, str) else repr(given)
    return UserError(f"mesh {shown:.200}: {reason}", arguments=("mesh",))
