"""Kernels on a mesh: every device attends with its own heads, and none speaks to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.rules import TENSOR, split_over

_SECOND, _THIRD = P(None, TENSOR), P(None, None, TENSOR)
# Which dimension of each argument and result is heads; what is not named has none.
_ARGUMENTS = {
    "queries": _THIRD,
    "keys": _THIRD,
    "values": _THIRD,
    "own_keys": _THIRD,
    "own_values": _THIRD,
    "key_positions": _THIRD,
    "key_scales": _THIRD,
    "value_scales": _THIRD,
    "query": _SECOND,
    "blocks": _SECOND,
}


def over_heads(kernel: Callable[..., jax.Array], result: int, **arguments: Any) -> jax.Array:
    """A kernel's result, computed by each device for its own heads where a mesh with an axis for them is in use.

    XLA cannot split a Pallas call by itself, so under `jax.set_mesh` it is told how.

    Args:
      kernel: takes keyword arguments alone; static ones (int, None) are passed as they are.
      result: the dimension of its result that is heads.
      arguments: the kernel's, by the names it gives them.
    """
    if not split_over(TENSOR):
        return kernel(**arguments)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
    static = {name: value for name, value in arguments.items() if name not in arrays}
    split = jax.shard_map(
        lambda arrays: kernel(**arrays, **static),
        in_specs=({name: _ARGUMENTS.get(name, P()) for name in arrays},),
        out_specs=P(*[None] * result, TENSOR),
        check_vma=False,  # a Pallas call does not say how its result varies
    )
    return split(arrays)
