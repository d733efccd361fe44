"""Products of rows with matrices: by XLA, or on a CPU by Numba where there are few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pallas_kernels import cpu


def product(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x w [..., *out] of x [..., in] and w [in, *out], summed and returned in `dtype`."""
    if w.ndim == 2 and dtype == jnp.float32 and _few(x, w):
        return products(x, [w])[0]
    return _summed(x, w, dtype)


def products(x: jax.Array, matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """x w [..., out] of x [..., in] and of every w [in, out], in the dtype of x."""
    if not _few(x, *matrices):
        return [_summed(x, w, x.dtype) for w in matrices]
    flat = _by_columns(x.reshape(-1, x.shape[-1]), list(matrices))
    return [y.reshape(*x.shape[:-1], -1) for y in flat]


def product_of_lines(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x w.T [..., out] of x [..., in] and w [out, in], summed and returned in `dtype`."""
    if dtype == jnp.float32 and x.shape[-1] % cpu.LANES == 0 and _few(x, w):
        return _by_lines(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], -1)
    return jnp.einsum("...d,vd->...v", x, w, preferred_element_type=dtype)


def _summed(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x w by XLA. Devices that share the inputs add up their sums, and all of them get the total."""
    over_x, over_w = jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec
    # JAX asks for the split of a sum over a dimension that is split itself.
    total = P(*over_x[:-1], *over_w[1:]) if over_x and over_x[-1] is not None and over_x[-1] == over_w[0] else None
    return jnp.tensordot(x, w, axes=1, preferred_element_type=dtype, out_sharding=total)


def _few(x: jax.Array, *matrices: jax.Array) -> bool:
    return cpu.serves(math.prod(x.shape[:-1]), x, *matrices)


# XLA knows no derivative of a call to Numba; training takes that of the plain product.
@jax.custom_jvp
def _by_columns(x: jax.Array, matrices: list[jax.Array]) -> list[jax.Array]:
    from pallas_kernels.cpu import product

    return product.products(x, matrices)


@_by_columns.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(lambda x, matrices: [x @ w for w in matrices], primals, tangents)


@jax.custom_jvp
def _by_lines(x: jax.Array, w: jax.Array) -> jax.Array:
    from pallas_kernels.cpu import product

    return product.product_of_lines(x, w)


@_by_lines.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(lambda x, w: x @ w.T, primals, tangents)
