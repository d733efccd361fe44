"""Islands: parts of a program that each device of a mesh computes by itself, inside what XLA splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.mesh_spec import AXES
from tokenswift_jax.parallel.rules import free_axes, kept, one_device, size_of


def island(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`shard_map` over all axes that no enclosing one has split, so that XLA splits none: it cannot split a Pallas
    call.

    Each device takes its part of an argument that all devices have; JAX refuses one that is split otherwise than
    `in_specs` says. `in_specs` has an entry for each argument.
    """
    several = {axis for axis in AXES if size_of(axis) > 1}
    given, found = kept(several, in_specs), kept(several, out_specs)
    split = jax.shard_map(
        function,
        in_specs=given,
        out_specs=found,
        axis_names=free_axes(),
        check_vma=False,  # a Pallas call does not say how its result varies
    )

    def call(*arguments: Any) -> Any:
        return split(*(_taken(each, spec) for each, spec in zip(arguments, given, strict=True)))

    return call


def _taken(tree: Any, specs: Any) -> Any:
    """Each device's parts of those arrays that all devices have, and the others as they are."""

    def one(spec: P, leaves: Any) -> Any:
        return jax.tree.map(lambda x: x if any(jax.typeof(x).sharding.spec) else jax.reshard(x, spec), leaves)

    return jax.tree.map(one, specs, tree, is_leaf=lambda x: isinstance(x, P))


def on_every_device(function: Callable[..., Any], *arguments: jax.Array) -> Any:
    """Calls `function`; on a mesh, every device computes all of it.

    All devices have the arguments. XLA does not know that it may replicate a Pallas call that has nothing to split.
    """
    if one_device():
        return function(*arguments)
    return island(function, in_specs=(P(),) * len(arguments), out_specs=P())(*arguments)
