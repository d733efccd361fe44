"""Threefry-2x32 in one expression, for CPUs: there `jax.random` loops over its rounds, some 20 small steps a call."""

from __future__ import annotations

import jax
import numpy as np

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)


def threefry(first: jax.Array, second: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two words of every count under its key: those of `jax.extend.random.threefry_2x32`.

    Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3; 20 rounds.

    Args:
      first, second: the words of the keys, uint32, of as many dimensions as `counts` and of a shape that broadcasts.
      counts: uint32, the lower words of the counts; the upper ones are 0.
    """
    schedule = first, second, first ^ second ^ _PARITY
    left, right = first, counts + second
    for group in range(1, 6):
        for rotation in _ROTATIONS[(group - 1) % 2]:
            left = left + right
            right = left ^ (right << np.uint32(rotation) | right >> np.uint32(32 - rotation))
        left, right = left + schedule[group % 3], right + schedule[(group + 1) % 3] + np.uint32(group)
    return left, right
