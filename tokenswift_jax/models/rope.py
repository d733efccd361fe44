"""Rotary position embedding: inverse frequencies by type, angles computed directly from positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int, dtype: np.dtype) -> tuple[np.ndarray, float]:
    """Inverse frequencies [head_dim / 2] (`dtype`, radians a position) and the factor of cos and sin.

    In float32, the function uses transformers' operations in transformers' order, so that the frequencies agree to the
    last bit: at position 100,000 one unit in the last place already turns a vector by 0.01 radians.

    Sources: RoFormer (default), position interpolation (linear), Llama 3.1 (llama3), YaRN
    arXiv 2309.00071 equations 16 to 22 (yarn).
    """
    exponents = np.arange(0, head_dim, 2).astype(dtype) / np.asarray(head_dim, dtype)
    periods = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(dtype)  # libraries differ in powf
    if rope.type == "default":
        return 1 / periods, 1.0
    assert rope.factor is not None
    if rope.type == "linear":
        return 1 / periods / rope.factor, 1.0
    assert rope.original_max_position is not None
    if rope.type == "llama3":
        return _llama3(rope, 1 / periods), 1.0
    assert rope.attention_factor is not None
    return _yarn(rope, periods, head_dim), rope.attention_factor


def _llama3(rope: RopeConfig, base: np.ndarray) -> np.ndarray:
    assert rope.factor is not None
    assert rope.original_max_position is not None
    assert rope.low_freq_factor is not None
    assert rope.high_freq_factor is not None
    wavelengths = 2 * math.pi / base
    rotations = rope.original_max_position / wavelengths
    blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * base / rope.factor + blend * base
    short = wavelengths < rope.original_max_position / rope.high_freq_factor
    long = wavelengths > rope.original_max_position / rope.low_freq_factor
    return np.where(long, base / rope.factor, np.where(short, base, blended))


def _yarn(rope: RopeConfig, periods: np.ndarray, head_dim: int) -> np.ndarray:
    assert rope.factor is not None
    assert rope.beta_fast is not None
    assert rope.beta_slow is not None
    trained = rope.original_max_position
    assert trained is not None

    def dimension(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the ramp's slope must stay finite
    ramp = np.clip((np.arange(head_dim // 2).astype(periods.dtype) - low) / (high - low), 0, 1)
    kept = 1 - ramp
    return 1 / (rope.factor * periods) * (1 - kept) + 1 / periods * kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angles that rotate the rows of a forward.

    Attributes:
      cos, sin: [batch, rows, head_dim / 2], float32 or wider.
    """

    cos: jax.Array
    sin: jax.Array

    def apply(self, x: jax.Array) -> jax.Array:
        """Rotates queries or keys [batch, rows, heads, head_dim]."""
        return rotate(x, self.cos, self.sin)


def rotation(rope: RopeConfig, head_dim: int, positions: jax.Array, dtype: jnp.dtype) -> Rotation:
    """The rotation of integer positions [batch, rows], in `dtype`."""
    frequencies, factor = inverse_frequencies(rope, head_dim, np.dtype(dtype))
    angles = positions[:, :, None].astype(dtype) * jnp.asarray(frequencies, dtype)[None, None, :]
    scale = jnp.asarray(factor, dtype)
    # XLA counts a cosine as cheap. Without the quotients, it computes both again wherever a layer rotates by them (a
    # tenth of a step of 16 rows of the demo on a CPU). It counts a quotient as dear, and computes it once.
    one = jnp.minimum(jnp.abs(angles) + 1, 1)
    return Rotation(jnp.cos(angles) * scale / one, jnp.sin(angles) * scale / one)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [batch, rows, heads, head_dim], pairing dimension i with i + head_dim / 2 (HF's order)."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
