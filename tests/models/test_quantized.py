"""Quantised linear maps against their own weights in float64, and what a quantised decoder shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokenswift_jax.models.layers import Linear
from tokenswift_jax.models.quantized import QuantizedLinear


def linear(inputs, outputs, bias=True, dtype=jnp.float32):
    made = Linear(inputs, outputs, bias=bias, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    if bias:
        made.bias[...] = jax.random.normal(jax.random.key(1), (outputs,), dtype)
    return made


def unpacked(quantised):
    """The weights [in, out] that the map stands for, float64."""
    kernel = np.asarray(quantised.kernel[...].astype(jnp.int8), np.float64)
    return (kernel * np.asarray(quantised.scale[...], np.float64)[:, None]).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize(("kind", "inputs", "groups"), [("int8", 96, 1), ("int4", 256, 2), ("int4", 96, 1)])
def test_weights_are_rounded_to_the_nearest_step_of_their_group(kind, inputs, groups):
    original = linear(inputs, 24)
    quantised = QuantizedLinear(original, kind)
    assert quantised.kernel[...].dtype == kind
    assert quantised.scale[...].shape == (groups, 24)
    step = np.repeat(np.asarray(quantised.scale[...]), inputs // groups, axis=0)
    weights = np.asarray(original.kernel[...])
    assert np.all(abs(unpacked(quantised) - weights) <= 0.5001 * step)  # half a step, and float32's rounding of it
    largest = abs(weights.reshape(groups, -1, 24)).max(axis=1)
    np.testing.assert_allclose(step.reshape(groups, -1, 24)[:, 0] * (127 if kind == "int8" else 7), largest, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_products_are_those_of_the_unpacked_weights(kind):
    quantised = QuantizedLinear(linear(256, 24), kind)
    x = jax.random.normal(jax.random.key(2), (3, 5, 256))
    expected = np.asarray(x, np.float64) @ unpacked(quantised)
    np.testing.assert_allclose(quantised.product(x, jnp.dtype(jnp.float32)), expected, atol=1e-5)  # sums of 256
    np.testing.assert_allclose(quantised(x), expected + np.asarray(quantised.bias[...], np.float64), atol=1e-5)


def test_a_column_of_zeros_stays_zero():
    original = linear(16, 4, bias=False)
    original.kernel[...] = original.kernel[...].at[:, 2].set(0)
    out = QuantizedLinear(original, "int4")(jnp.ones((2, 16)))
    assert np.isfinite(out).all()
    assert (np.asarray(out)[:, 2] == 0).all()


def test_narrow_activations_keep_their_type():
    quantised = QuantizedLinear(linear(128, 8, dtype=jnp.bfloat16), "int8")
    x = jnp.ones((2, 128), jnp.bfloat16)
    assert quantised(x).dtype == jnp.bfloat16
    assert quantised.product(x, jnp.dtype(jnp.float32)).dtype == jnp.float32
