"""The precision of matrix products in compiled programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp


@contextmanager
def exact_products(dtype: jnp.dtype) -> Iterator[None]:
    """Makes XLA compute matrix products of float32 and wider models in full precision.

    Without it, XLA computes them in TF32 or bfloat16 passes, which breaks token equality.
    """
    if jnp.dtype(dtype).itemsize >= 4:
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield
