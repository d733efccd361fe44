"""The placement of an engine's arrays: on the devices of a mesh, or on one device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.mesh import use
from tokenswift_jax.parallel.mesh_spec import DATA
from tokenswift_jax.parallel.rules import shardings

_Tree = TypeVar("_Tree")


@dataclass(frozen=True)
class Placement:
    """Where arrays are stored and programs run.

    Attributes:
      mesh: the mesh; None: one device.
    """

    mesh: Mesh | None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh's axes; {} without a mesh."""
        return {} if self.mesh is None else dict(self.mesh.shape)

    def rows(self, batch: int) -> int:
        """The rows, at least `batch`, that the mesh's groups share evenly."""
        groups = self.sizes.get(DATA, 1)
        return -(-batch // groups) * groups

    def in_use(self) -> AbstractContextManager[Any]:
        """The context in which a thread traces and runs programs here."""
        return use(self.mesh)

    def enter(self) -> None:
        """Makes it the context of this thread to its end."""
        if self.mesh is not None:
            jax.set_mesh(self.mesh)

    def make(self, function: Callable[..., _Tree], *static: Hashable) -> _Tree:
        """Calls `function`, which makes arrays; on a mesh, each device makes its own part of them."""
        return function(*static) if self.mesh is None else _maker(self.mesh, function, static)()

    def compute(self, function: Callable[..., _Tree], *arguments: jax.Array) -> _Tree:
        """Calls `function` of arrays once; on a mesh, each device computes its own part of the results."""
        if self.mesh is None:
            return function(*arguments)
        with self.in_use():
            where = shardings(self.mesh, jax.eval_shape(function, *arguments))
            return jax.jit(function, out_shardings=where)(*arguments)

    def rows_of(self, values: np.ndarray | jax.Array) -> jax.Array:
        """An array [batch, ...] on the devices."""
        if self.mesh is None:
            return jnp.asarray(values)
        groups = self.sizes[DATA]
        spec = P(DATA) if values.shape[0] % groups == 0 else P()
        return jax.device_put(values, NamedSharding(self.mesh, spec))

    def put(self, tree: _Tree) -> _Tree:
        """The tree on the mesh's devices."""
        return tree if self.mesh is None else jax.device_put(tree, shardings(self.mesh, tree))

    def settle(self, results: _Tree) -> _Tree:
        """Waits for the results of a program, where the next one must not begin before: on a mesh of virtual devices.

        Without the wait, programs queue up on a CPU, and their collectives wait for threads that others occupy.
        """
        if self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(results)
        return results


@functools.lru_cache(maxsize=64)
def _maker(mesh: Mesh, function: Callable[..., Any], static: tuple) -> Callable[[], Any]:
    made = functools.partial(function, *static)
    return jax.jit(made, out_shardings=shardings(mesh, jax.eval_shape(made)))
