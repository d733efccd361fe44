"""Weights in 8 or 4 bits for drafting: the drafter's precision changes the acceptance, never the text."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.layers import Linear

KINDS = ("int8", "int4")
# Inputs that share a scale. 8 bits suffice for one scale per column of the kernel (None); 4 bits do not.
_GROUPS = {"int8": None, "int4": 128}
_HIGHEST = {"int8": 127, "int4": 7}


class QuantizedLinear(nnx.Module):
    """y = x W + b, W = kernel * scale: kernel int8 or int4 [groups, in / groups, out], scale float32 [groups, out].

    `out` may be several axes, as in `Linear`.

    Quantisation is symmetric, rounds to nearest, and takes each scale from the largest weight of its group. int8 has
    one group; int4 has groups of 128 inputs (one group if 128 does not divide the inputs).
    """

    def __init__(self, linear: Linear, kind: str, stack: bool = False):
        """Quantises a map, or with `stack` the maps of several layers ([layers, in, out], `models.stacked`)."""
        quantize = partial(_quantize, kind)
        values, scale = (jax.vmap(quantize) if stack else quantize)(linear.kernel[...])
        self.kernel = nnx.Param(values)
        self.scale = nnx.Param(scale)
        self.bias = linear.bias

    def sums(self, x: jax.Array) -> jax.Array:
        """x W [..., out], without the bias."""
        return self.product(x, jnp.dtype(jnp.float32)).astype(x.dtype)

    def biased(self, y: jax.Array) -> jax.Array:
        """`sums` with the bias added."""
        if self.bias is None:
            return y
        return y + jnp.expand_dims(self.bias[...], range(y.ndim - self.bias.ndim))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.biased(self.sums(x))

    def product(self, x: jax.Array, wide: jnp.dtype) -> jax.Array:
        """x W [..., out] in `wide`; scales each group's sum, so that XLA never writes unpacked weights to memory."""
        kernel, scale = self.kernel[...], self.scale[...]
        grouped = x.reshape(*x.shape[:-1], kernel.shape[0], kernel.shape[1])
        out = "opq"[: kernel.ndim - 2]
        of = f"...gi,gi{out}->...g{out}"
        sums = jnp.einsum(of, grouped, kernel.astype(x.dtype), preferred_element_type=wide)
        return jnp.sum(sums * jnp.expand_dims(scale.astype(wide), range(x.ndim - 1)), axis=-scale.ndim)


def quantized(decoder: Decoder, kind: str, *, backbone: bool) -> Decoder:
    """Quantises the decoder's linear maps to `kind` (of KINDS); modifies the given module and returns it.

    Embeddings, norms and biases do not change.

    Args:
      decoder: the module; the result shares its arrays that are not quantised.
      kind: "int8" or "int4".
      backbone: quantise the layers too; else only the LM head and the draft heads, for drafts that read a verified
        state.
    """
    parts: list[Any] = [decoder.draft_heads, *([decoder.stack, *decoder.layers] if backbone else [])]
    for part in (part for part in parts if part is not None):
        for _, module in list(nnx.iter_modules(part)):
            for name, value in list(vars(module).items()):
                if isinstance(value, Linear):
                    setattr(module, name, QuantizedLinear(value, kind, stack=part is decoder.stack))
    for name in ("lm_head", "draft_lm_head"):
        linear = getattr(decoder, name)
        if linear is not None:
            setattr(decoder, name, QuantizedLinear(linear, kind))
    return decoder


def _quantize(kind: str, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, *outputs = kernel.shape
    size = _GROUPS[kind]
    groups = inputs // size if size is not None and inputs % size == 0 else 1
    wide = kernel.reshape(groups, inputs // groups, *outputs).astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=1)
    scale = jnp.where(most > 0, most, 1) / _HIGHEST[kind]
    return jnp.round(wide / scale[:, None]).astype(kind), scale
