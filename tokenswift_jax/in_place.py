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
    the one that changes nothing.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), function(c[1])), (condition, value))[1]
