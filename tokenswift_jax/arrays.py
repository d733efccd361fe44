"""Named axes of the arrays in dataclass fields: one declaration gives the slots of a batch, checks of shapes and, by
`parallel.rules`, shardings and bytes.

A dataclass declares each array with `axes(...)`; code that needs a dimension asks here instead of counting dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

BATCH = "batch"
_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Axes:
    """The names of an array's dimensions, in order: a leaf of the tree that `axes_of` returns."""

    names: tuple[str, ...]

    @property
    def batch(self) -> int:
        """The index of the batch dimension."""
        return self.names.index(BATCH)


def axes(*names: str, **options: Any) -> Any:
    """A dataclass field whose array, or each array of a tuple, has dimensions of these names."""
    return dataclasses.field(metadata={"axes": Axes(names)}, **options)


def apart(*shared: str, **options: Any) -> Any:
    """A dataclass field with a tuple of dataclasses, which mean the same sizes as the dataclasses around them by these
    names alone: each entry has sizes of its own for the others."""
    return dataclasses.field(metadata={"shared": shared}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(axes, apart, dataclasses.field))
def pytree(declared: type[_Tree]) -> type[_Tree]:
    """Makes a class a frozen dataclass that JAX treats as a pytree; every field that is not `static` is data."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(declared))


def axes_of(tree: Any) -> Any:
    """The same dataclasses, and tuples of them, with an `Axes` in place of every array; None stays None.

    Raises:
      TypeError: a field contains an array and names no axes.
    """
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(map(axes_of, tree))
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        raise TypeError(f"a {type(tree).__name__} names no axes; declare the field with arrays.axes(...)")
    named = {}
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if field.metadata.get("static"):
            continue
        if "axes" in field.metadata and value is not None:
            each = field.metadata["axes"]
            named[field.name] = (each,) * len(value) if isinstance(value, tuple) else each
        else:
            named[field.name] = axes_of(value)
    return dataclasses.replace(tree, **named)


def check_shapes(**trees: Any) -> None:
    """Checks arrays or shapes against the axes that their fields name: each has as many dimensions, and a name has one
    size in all the trees (but see `apart`). Outside of jit, where arrays enter; it reads shapes alone.

    Args:
      trees: dataclasses, or tuples of them, by their names in errors.

    Raises:
      ValueError: an array has another shape; it names the field.
      TypeError: a field contains an array and names no axes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, tree in trees.items():
        _check(tree, sizes, name)


def _check(tree: Any, sizes: dict[str, tuple[int, str]], path: str) -> None:
    """sizes: of each name, its size and the field that gave it."""
    if tree is None:
        return
    if isinstance(tree, tuple):
        for place, entry in enumerate(tree):
            _check(entry, sizes, f"{path}[{place}]")
        return
    for field, names in _fields(type(tree)):
        value, where = getattr(tree, field.name), f"{path}.{field.name}"
        if names is not None:
            for array in value if isinstance(value, tuple) else () if value is None else (value,):
                _check_array(array.shape, names.names, sizes, where)
        elif "shared" in field.metadata:
            common = {name: sizes[name] for name in field.metadata["shared"] if name in sizes}
            for place, entry in enumerate(value):
                _check(entry, dict(common), f"{where}[{place}]")
        else:
            _check(value, sizes, where)


def _check_array(shape: tuple[int, ...], names: tuple[str, ...], sizes: dict[str, tuple[int, str]], where: str) -> None:
    if len(shape) != len(names):
        raise ValueError(f"{where} has shape {list(shape)} and its dimensions are [{', '.join(names)}]")
    for name, size in zip(names, shape, strict=True):
        known, first = sizes.setdefault(name, (size, where))
        if known != size:
            raise ValueError(f"{where} has {size} for {name} in shape {list(shape)}, and {first} has {known}")


@functools.cache
def _fields(declared: type) -> tuple[tuple[dataclasses.Field, Axes | None], ...]:
    """The fields with data, and the axes of each that has arrays."""
    if not dataclasses.is_dataclass(declared):
        raise TypeError(f"a {declared.__name__} names no axes; declare the field with arrays.axes(...)")
    return tuple(
        (field, field.metadata.get("axes"))
        for field in dataclasses.fields(declared)
        if not field.metadata.get("static")
    )


def put_row(tree: _Tree, row: Any, slot: jax.Array, meant: jax.Array | None = None) -> _Tree:
    """Writes row 0 of `row` (the same dataclasses, batch 1) to a slot, int32 [], of the tree's batch.

    Every other dimension of `row` may be shorter: then its content fills the beginning. XLA writes in place where the
    tree is donated. Arrays without a batch stay as they are, and so does the slot if `meant`, bool [], is false; None
    is true.
    """

    def put(names: Axes, whole: jax.Array, one: jax.Array) -> jax.Array:
        if BATCH not in names.names:
            return whole
        at = [jnp.zeros((), jnp.int32)] * whole.ndim
        at[names.batch] = slot
        new = one.astype(whole.dtype)
        if meant is not None:
            new = jnp.where(meant, new, jax.lax.dynamic_slice(whole, at, new.shape))
        return jax.lax.dynamic_update_slice(whole, new, at)

    return jax.tree.map(put, axes_of(tree), tree, row)


def take_row(tree: _Tree, slot: jax.Array) -> _Tree:
    """The row of a slot, int32 [], as a tree of batch 1. Arrays without a batch stay as they are."""

    def take(names: Axes, whole: jax.Array) -> jax.Array:
        if BATCH not in names.names:
            return whole
        return jax.lax.dynamic_slice_in_dim(whole, slot, 1, axis=names.batch)

    return jax.tree.map(take, axes_of(tree), tree)
