"""The division of a training run's arrays among the devices of a mesh (fully sharded data parallelism, FSDP).

Along the data axis, each device stores its part of every matrix, of the matrix's gradient and of its optimizer state,
and computes its own rows of each batch. A step gathers the matrices of a layer before that layer, and each device keeps
the sum of all gradients for its own part alone. Along the model axis, matrices are split by heads, inner columns and
vocabulary (`parallel.rules`), and no device gathers them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.implementation import compiling_for
from tokenswift_jax.parallel.mesh_spec import DATA, MODEL
from tokenswift_jax.parallel.rules import parameter_axes, spec_of_axes

_Tree = TypeVar("_Tree")
_LAYERS = "layers"


@dataclass(frozen=True)
class Shares:
    """The devices of a run, and the part of each array that they store.

    Attributes:
      mesh: the devices; None: one device, on which every method returns its argument or does nothing.
      heads: the model's attention heads and its K/V heads. The model axis cuts no head. Where it does not divide their
        number, each device along it stores all of their matrices.
    """

    mesh: Mesh | None = None
    heads: tuple[int, int] = (1, 1)

    @property
    def groups(self) -> int:
        """The devices along the data axis."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @property
    def decoding(self) -> dict[str, int] | None:
        """The mesh on which the run decodes: the same number of devices, along the model axis."""
        return None if self.mesh is None else {MODEL: self.mesh.size}

    def rows(self, batch: int) -> int:
        """The rows, at least `batch`, that the data axis divides evenly."""
        return -(-batch // self.groups) * self.groups

    def sharding(self, path: tuple[Any, ...], shape: tuple[int, ...]) -> Sharding:
        """The sharding of the parameter at a path of names; also that of its gradient and of its optimizer state."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, self._spec(path, shape))

    def shardings(self, tree: Any) -> Any:
        """The sharding of every array or shape of a tree of parameters, or of a state that contains such trees."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self.sharding(_names(path), leaf.shape), tree)

    def bytes_on_each(self, tree: Any) -> int:
        """The bytes of a tree's arrays or shapes that each device stores."""
        parts = zip(jax.tree.leaves(tree), jax.tree.leaves(self.shardings(tree)), strict=True)
        return sum(math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf, where in parts)

    def put(self, tree: _Tree) -> _Tree:
        """The tree's arrays on the devices, each with its own part."""
        return jax.device_put(tree, self.shardings(tree))

    def make(self, function: Callable[..., _Tree], *arguments: Any) -> _Tree:
        """Calls `function`, which makes a tree of arrays; each device makes its own part of them."""
        if self.mesh is None:
            return self.put(function(*arguments))
        where = self.shardings(jax.eval_shape(function, *arguments))
        return jax.jit(function, out_shardings=where)(*arguments)

    def put_rows(self, values: Any) -> Any:
        """Arrays [accumulation, batch, ...] on the devices, each with its own rows. The batch must be one of `rows`."""
        if self.mesh is None:
            return values
        return jax.device_put(values, NamedSharding(self.mesh, P(None, DATA)))

    def split(self, tree: _Tree) -> _Tree:
        """Inside a jitted function, keeps of every array the part that its device stores."""
        if self.mesh is None:
            return tree
        return jax.tree.map(jax.lax.with_sharding_constraint, tree, self.shardings(tree))

    def by_rows(self, x: jax.Array) -> jax.Array:
        """Inside a jitted function, keeps of x [batch, ...] each device's own rows.

        Without it, XLA may split the residual stream by columns, and then sums it after every matrix.
        """
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(DATA)))

    def gathered(self, tree: _Tree, *, layers: bool = True) -> _Tree:
        """Inside a jitted function, the parameters with all parts that the data axis splits; their gradient has the
        parts alone.

        Args:
          tree: parameters.
          layers: whether those of a decoder's layers too; False leaves them as they are, for a gather at each layer.
        """
        mesh = self.mesh
        if mesh is None:
            return tree

        def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            names = _names(path)
            if not layers and names[0] == _LAYERS:
                return leaf
            whole = NamedSharding(mesh, self._model_spec(names, leaf.shape))
            part = NamedSharding(mesh, self._spec(names, leaf.shape))
            return leaf if whole == part else _gather(whole, part, leaf)

        return jax.tree_util.tree_map_with_path(one, tree)

    def gathers_again(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's function whose backward pass gathers the layer's matrices again.

        Without it, each device keeps the gathered matrices of all layers for the backward pass (cost: the whole model).
        """
        return run if self.mesh is None else jax.checkpoint(run, policy=_all_but_gathered)

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """The context in which JAX traces a program that XLA splits: it cannot split a Pallas call by itself."""
        return contextlib.nullcontext() if self.mesh is None else compiling_for("reference")

    def _spec(self, names: tuple[Any, ...], shape: tuple[int, ...]) -> P:
        """The split over both axes: the data axis divides the longest dimension that it can.

        It leaves vectors whole: a collective for each would cost more time than their bytes are worth.
        """
        model = self._model_spec(names, shape)
        over = [*model, *[None] * (len(shape) - len(model))]
        free = [index for index, axis in enumerate(over) if axis is None and shape[index] % self.groups == 0]
        if len(shape) > 1 and self.groups > 1 and free:
            over[max(free, key=lambda index: shape[index])] = DATA
        while over and over[-1] is None:
            over.pop()
        return P(*over)

    def _model_spec(self, names: tuple[Any, ...], shape: tuple[int, ...]) -> P:
        assert self.mesh is not None
        axes = parameter_axes(names)
        counts: dict[str, int] = dict(zip(("heads", "kv_heads"), self.heads, strict=True))
        sizes = tuple(counts.get(axis, size) for axis, size in zip(axes, shape, strict=False))
        return spec_of_axes({MODEL: self.mesh.shape[MODEL]}, axes, sizes)


ONE_DEVICE = Shares()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: NamedSharding, part: NamedSharding, leaf: jax.Array) -> jax.Array:
    del part
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gather_forward(whole: NamedSharding, part: NamedSharding, leaf: jax.Array) -> tuple[jax.Array, None]:
    # Without a constraint of its own here, `_all_but_gathered` meets the call of `_gather`, and each device keeps the
    # gathered matrices of all layers (cost: the whole model).
    del part
    return jax.lax.with_sharding_constraint(leaf, whole), None


def _gather_backward(whole: NamedSharding, part: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    del whole
    return (jax.lax.with_sharding_constraint(gradient, part),)


_gather.defvjp(_gather_forward, _gather_backward)


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: the backward pass computes again the results of sharding constraints alone."""
    return primitive.name != "sharding_constraint"


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
