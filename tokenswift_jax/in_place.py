"""Changes that a program makes only under a condition, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

_Tree = TypeVar("_Tree")


def update_if(condition: jax.Array, function: Callable[[_Tree], _Tree], value: _Tree) -> _Tree:
    """Returns function(value) if the condition, bool [], is true, else value; updates in place.

    The implementation is a loop of at most one turn. With `lax.cond`, XLA would copy the value on every path, also on
    the one that changes nothing. The loop counts its turns, so that its condition is a computation. If the condition
    were the carried bool itself, XLA for GPUs would record no kernel for it in a CUDA graph, and no dependency: the
    loop would run beside the kernels before it (on an H200 a text of `partial` had token ids out of range).
    """

    def turn(carry: tuple[jax.Array, _Tree]) -> tuple[jax.Array, _Tree]:
        left, kept = carry
        return left - 1, function(kept)

    return jax.lax.while_loop(lambda carry: carry[0] > 0, turn, (condition.astype(jnp.int32), value))[1]
