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

from tokenswift_jax.kv.cyclic import BLOCK, Cyclic
from tokenswift_jax.parallel.mesh import use
from tokenswift_jax.parallel.mesh_spec import CONTEXT, DATA
from tokenswift_jax.parallel.rules import shardings, spec_of_axes

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

    @property
    def _spread(self) -> bool:
        """Whether the mesh has devices of several processes."""
        return self.mesh is not None and self.mesh.is_multi_process

    def rows(self, batch: int) -> int:
        """The rows, at least `batch`, that the mesh's groups share evenly."""
        groups = self.sizes.get(DATA, 1)
        return -(-batch // groups) * groups

    def cyclic(self, draft_block: int | None = None) -> Cyclic | None:
        """How the devices share a cache's length; None: they do not.

        draft_block: positions of the blocks that a draft cache selects; None: it selects single ones, or there is none.
        """
        devices = self.sizes.get(CONTEXT, 1)
        return None if devices == 1 else Cyclic(devices, draft_block or BLOCK)

    def in_use(self) -> AbstractContextManager[Any]:
        """The context in which a thread traces and runs programs here."""
        return use(self.mesh)

    def enter(self) -> None:
        """Makes it the context of this thread until the thread ends."""
        if self.mesh is not None:
            jax.set_mesh(self.mesh)

    def make(self, function: Callable[..., _Tree], *static: Hashable) -> _Tree:
        """Calls `function`, which makes arrays; on a mesh, each device makes its own part of them."""
        return function(*static) if self.mesh is None else _maker(self.mesh, function, static)()

    def rows_of(self, values: np.ndarray | jax.Array) -> jax.Array:
        """An array [batch, ...] on the devices."""
        if self.mesh is None:
            return jnp.asarray(values)
        return _put(values, NamedSharding(self.mesh, spec_of_axes(self.sizes, ("batch",), values.shape)))

    def put(self, tree: _Tree) -> _Tree:
        """The tree on the mesh's devices."""
        return tree if self.mesh is None else jax.tree.map(_put, tree, shardings(self.mesh, tree))

    def readable(self, results: _Tree) -> _Tree:
        """The results with all their values on the devices of each process, for the host to read.

        All processes have to call it, in one order.
        """
        return _replicated(self.mesh)(results) if self._spread else results

    def read(self, values: jax.Array) -> np.ndarray:
        """All values of an array, on the host; in several processes, all have to call it."""
        return np.asarray(self.readable(values))


def _put(values: Any, where: NamedSharding) -> jax.Array:
    """The values on a mesh. If it has devices of several processes, each process puts its part of values that it has.

    Without the callback, JAX compares the values of all processes, by a program that would have to run at the same
    moment in each.
    """
    if not where.mesh.is_multi_process:  # pyright: ignore[reportAttributeAccessIssue]
        return jax.device_put(values, where)
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return values if values.sharding == where else jax.jit(lambda x: x, out_shardings=where)(values)
    host = np.asarray(values)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


@functools.lru_cache(maxsize=8)
def _replicated(mesh: Mesh | None) -> Callable[[Any], Any]:
    assert mesh is not None
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


@functools.lru_cache(maxsize=64)
def _maker(mesh: Mesh, function: Callable[..., Any], static: tuple) -> Callable[[], Any]:
    made = functools.partial(function, *static)
    return jax.jit(made, out_shardings=shardings(mesh, jax.eval_shape(made)))
