"""Building blocks of the decoder: linear maps and RMSNorm with HF's names and explicit dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.add_norm import add_norm
from pallas_kernels.add_norm.reference import rms_norm
from pallas_kernels.dtypes import wide_dtype
from pallas_kernels.few_rows import product, product_of_lines, products
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rules import one_device

__all__ = ["Linear", "RMSNorm", "linear_maps", "product_of_lines", "wide_dtype"]


class Linear(nnx.Module):
    """y = x W + b with W stored [in, out], the transpose of HF's layout.

    `out` is one axis, or several where `models.joined` has made one map of several.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        scale = jnp.asarray(inputs**-0.5, dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs), dtype) * scale)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def product(self, x: jax.Array, wide: jnp.dtype) -> jax.Array:
        """x W [..., out], accumulated and returned in `wide`."""
        return product(x, self.kernel[...], wide)

    def sums(self, x: jax.Array) -> jax.Array:
        """x W [..., out], without the bias."""
        return product(x, self.kernel[...], x.dtype)

    def biased(self, y: jax.Array) -> jax.Array:
        """`sums` with the bias added."""
        if self.bias is None:
            return y
        return y + jnp.expand_dims(self.bias[...], range(y.ndim - self.bias.ndim))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.biased(self.sums(x))


def linear_maps(x: jax.Array, maps: Sequence[Any]) -> tuple[jax.Array, ...]:
    """The results of several linear maps of the same rows."""
    if not all(type(each) is Linear for each in maps):
        return tuple(each(x) for each in maps)
    sums = products(x, [each.kernel[...] for each in maps])
    return tuple(each.biased(y) for each, y in zip(maps, sums, strict=True))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis; computes the mean in float32 or wider, as transformers does."""

    def __init__(self, size: int, *, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)

    def of_sum(self, stream: jax.Array, added: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The sum of two parts of the residual stream, and its norm."""
        if not one_device():  # XLA cannot split a Pallas call by itself
            stream = replicate(stream + added)
            return stream, self(stream)
        return add_norm(stream, added, self.scale[...], self.eps)
