"""The sharding of every array on a mesh: this module alone maps array dimensions to mesh axes.

Each array's dimensions have names, those of a state on its fields (`arrays.axes`), those of a parameter in a table
below, those of a kernel's arguments where it is split (`heads`). A second table gives the mesh axes of each name; names
without any, and dimensions that no axis divides, are replicated.

Three facts have other homes. A collective names the axis along which it sends: `vocabulary`, `embedding`, `context` and
`stages` add up what that axis splits. `rows` knows that scalars are not split, and plain arrays are along the batch.
Training stores each matrix in parts along the data axis too, which decoding never does (`training.shares`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.mesh_spec import AXES, CONTEXT, DATA, MODEL, STAGE

# Of several axes the first ones that divide a dimension share it.
RULES = {
    "batch": (DATA,),
    "context": (CONTEXT,),
    "groups": (STAGE,),
    "heads": (MODEL,),
    "kv_heads": (MODEL,),
    "layers": (STAGE,),
    "stages": (STAGE,),
    "inner": (MODEL, CONTEXT),
    "vocab": (MODEL, CONTEXT),
}

# The dimensions of parameters, by the last two names of their path; other parameters are replicated. Projections that
# read the residual stream are split by column, those that write it by row, so a layer needs two sums across devices.
_PARAMETERS = {
    ("qkv_proj", "kernel"): ("embed", "kv_heads", "group", "head_dim"),  # `models.joined`
    ("qkv_proj", "bias"): ("kv_heads", "group", "head_dim"),
    ("gate_up_proj", "kernel"): ("embed", "parts", "inner"),
    ("gate_up_proj", "bias"): ("parts", "inner"),
    ("q_proj", "kernel"): ("embed", "heads"),
    ("k_proj", "kernel"): ("embed", "kv_heads"),
    ("v_proj", "kernel"): ("embed", "kv_heads"),
    ("q_proj", "bias"): ("heads",),
    ("k_proj", "bias"): ("kv_heads",),
    ("v_proj", "bias"): ("kv_heads",),
    ("o_proj", "kernel"): ("heads", "embed"),
    ("gate_proj", "kernel"): ("embed", "inner"),
    ("up_proj", "kernel"): ("embed", "inner"),
    ("gate_proj", "bias"): ("inner",),
    ("up_proj", "bias"): ("inner",),
    ("down_proj", "kernel"): ("inner", "embed"),
    ("lm_head", "kernel"): ("embed", "vocab"),
    ("draft_lm_head", "kernel"): ("embed", "vocab"),
    ("linear", "kernel"): ("embed", "inner"),  # draft heads
    ("linear", "bias"): ("inner",),
}
_EMBEDDINGS = ("vocab", "embed")
_ISLANDS = (MODEL, CONTEXT)  # the axes that split islands


def split_over(axis: str) -> bool:
    """Whether a mesh is in use, has several devices along the axis, and XLA splits programs over it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or axis not in mesh.axis_names or mesh.shape[axis] == 1:
        return False
    return mesh.axis_types[mesh.axis_names.index(axis)] != AxisType.Manual


def size_of(axis: str) -> int:
    """The devices along an axis of the mesh in use, over which XLA splits programs; 1 without any."""
    return jax.sharding.get_abstract_mesh().shape[axis] if split_over(axis) else 1


def shared_over(name: str, size: int) -> tuple[str, ...]:
    """The axes of the mesh in use over which XLA splits a dimension of that name and size; () where it is whole."""
    return _axes_of({axis: size_of(axis) for axis in RULES[name]}, name, size)


def one_device() -> bool:
    """Whether XLA splits the program that JAX traces here over no axis: XLA cannot split a Pallas call by itself."""
    return not any(split_over(axis) for axis in AXES)


def free_axes() -> set[str]:
    """The axes of the mesh in use that no enclosing `shard_map` has split already."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every array or shape of a tree; None stays None."""
    sizes = dict(mesh.shape)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(sizes, tree), is_leaf=lambda x: isinstance(x, P))


def specs(sizes: Mapping[str, int], tree: Any) -> Any:
    """The `PartitionSpec` of every array or shape on a mesh of such sizes: by the names on the fields of dataclasses,
    and by the names on the path of parameters; None stays None."""
    return _mapped(tree, lambda names, leaf: spec_of_axes(sizes, names, leaf.shape))


def named(tree: Any) -> list[tuple[str, tuple[str, ...], Any]]:
    """The path, the names of the dimensions, and the array or shape of every leaf of a tree."""
    found = _mapped(tree, lambda names, leaf: _Named(names, leaf))
    leaves = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda x: isinstance(x, _Named))
    return [(".".join(_names_on(path)), entry.names, entry.leaf) for path, entry in leaves]


def bytes_on_each(sizes: Mapping[str, int], tree: Any) -> int:
    """The bytes of arrays or shapes that each device of a mesh of such sizes stores."""
    total = 0
    for _, names, leaf in named(tree):
        parts = math.prod(sizes[axis] for axis in axes_in(spec_of_axes(sizes, names, leaf.shape)))
        total += math.prod(leaf.shape) // parts * jax.numpy.dtype(leaf.dtype).itemsize
    return total


def axes_in(spec: P) -> tuple[str, ...]:
    """The mesh axes over which a spec splits an array."""
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    return tuple(axis for entry in entries for axis in entry)


def placed(tree: Any) -> Any:
    """Inside a jitted function, keeps every array of dataclasses where the rules say; nothing on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(jax.reshard, tree, specs(_sizes_of(mesh), tree))


def split_as(x: jax.Array, *names: str) -> jax.Array:
    """Inside a jitted function, splits x as the rules say for dimensions of these names; nothing on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.reshard(x, spec_of_axes(_sizes_of(mesh), names, x.shape))


def _sizes_of(mesh: jax.sharding.AbstractMesh) -> dict[str, int]:
    return {axis: size_of(axis) for axis in mesh.axis_names}


@dataclasses.dataclass(frozen=True)
class _Named:
    names: tuple[str, ...]
    leaf: Any


def _mapped(tree: Any, function: Any) -> Any:
    """The tree with `function` of names and leaf in place of every leaf."""
    if isinstance(tree, tuple):
        return tuple(_mapped(part, function) for part in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = {}
        for field in dataclasses.fields(tree):
            if field.metadata.get("static"):
                continue
            value, axes = getattr(tree, field.name), field.metadata.get("axes")
            if axes is None:
                parts[field.name] = _mapped(value, function)
            else:
                parts[field.name] = jax.tree.map(lambda leaf, axes=axes: function(axes.names, leaf), value)
        return dataclasses.replace(tree, **parts)

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        return function(parameter_axes(_names_on(path)), leaf)

    return jax.tree_util.tree_map_with_path(one, tree)


def parameter_axes(path: Sequence[Any]) -> tuple[str, ...]:
    """The names of a parameter's dimensions; () where it is replicated."""
    names = [str(name) for name in path if name != "value"]  # nnx wraps a parameter in a variable
    if "embed_tokens" in names:
        return _EMBEDDINGS
    axes = _PARAMETERS.get((names[-2], names[-1]), ()) if len(names) > 1 else ()
    return ("groups", *axes) if "stack" in names else axes  # `models.stacked`: first come groups of layers


def parameter_sharding(mesh: Mesh, path: Sequence[Any], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of the parameter at a path."""
    return NamedSharding(mesh, spec_of_axes(dict(mesh.shape), parameter_axes(path), shape))


def spec_of_axes(sizes: Mapping[str, int], names: tuple[str, ...], shape: tuple[int, ...]) -> P:
    """The split of an array whose dimensions have these names, on a mesh of such sizes."""
    over: list[str | tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=False):
        over.append(_entry(_axes_of(sizes, name, size)))
    while over and over[-1] is None:
        over.pop()
    return P(*over)


def _axes_of(sizes: Mapping[str, int], name: str, size: int) -> tuple[str, ...]:
    """The axes that split a dimension of that name and size, on a mesh of such sizes."""
    axes = tuple(axis for axis in RULES.get(name, ()) if sizes.get(axis, 1) > 1)
    while size % math.prod(sizes[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def island_spec(*names: str | None) -> P:
    """The split, inside what `over_rows` runs, of an argument or result of an island whose first dimensions have these
    names; None is a dimension that nothing splits. `over_rows` has split the batch and the layers before."""
    over = [tuple(axis for axis in RULES.get(name or "", ()) if axis in _ISLANDS) for name in names]
    return P(*map(_entry, over))


def kept(axes: Collection[str], tree: Any) -> Any:
    """The specs of a tree with these axes alone; other leaves as they are."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, P):
            return leaf
        return P(*(_entry(tuple(axis for axis in axes_in(P(entry)) if axis in axes)) for entry in leaf))

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, P))


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """The entry of a spec for a dimension that these axes split."""
    return axes if len(axes) > 1 else axes[0] if axes else None


def _names_on(path: tuple[Any, ...]) -> list[str]:
    return [_name(key) for key in path]


def _name(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
