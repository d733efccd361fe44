"""A residual stream's next value and its RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.add_norm import reference
from pallas_kernels.implementation import choose

__all__ = ["add_norm"]


def add_norm(stream: jax.Array, added: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """`stream + added` and its RMSNorm, both [..., size] in the stream's dtype.

    On a GPU one kernel computes both and reads every number once; XLA would launch three.

    Args:
      stream, added: [..., size].
      scale: [size], the norm's factors.
      eps: added to the mean of the squares.
    """
    # The kernel computes in float32; Triton's arrays have powers of two as sizes, and a row is a few of them.
    fits = stream.dtype != jnp.float64 and stream.shape[-1] % 64 == 0
    if choose("add_norm", ("reference", "gpu") if fits else ("reference",)) == "gpu":
        # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
        from pallas_kernels.add_norm import gpu

        return gpu.add_norm(stream, added, scale, eps)
    return reference.add_norm(stream, added, scale, eps)
