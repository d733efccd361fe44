"""Islands: parts of a program that each device of a mesh computes by itself, inside what XLA splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.rules import free_axes, one_device


def island(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`shard_map` over all axes that no enclosing one has split, so that XLA splits none: it cannot split a Pallas
    call."""
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=free_axes(),
        check_vma=False,  # a Pallas call does not say how its result varies
    )


def on_every_device(function: Callable[..., Any], *arguments: jax.Array) -> Any:
    """Calls `function`; on a mesh, every device computes all of it.

    All devices have the arguments. XLA does not know that it may replicate a Pallas call that has nothing to split.
    """
    if one_device():
        return function(*arguments)
    return island(function, in_specs=P(), out_specs=P())(*arguments)
