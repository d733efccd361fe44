"""The properties of a GPU by which kernels size their programs."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
      compute_capability: (major, minor).
      multiprocessors: number of streaming multiprocessors.
    """

    compute_capability: tuple[int, int]
    multiprocessors: int


A100 = Gpu((8, 0), 108)
H200 = Gpu((9, 0), 132)


def attached() -> Gpu:
    """The first attached GPU; an H200 where none is attached."""
    if jax.default_backend() != "gpu":
        return H200
    device = jax.devices()[0]
    major, minor = str(device.compute_capability).split(".")
    return Gpu((int(major), int(minor)), device.core_count)
