"""Inverse frequencies and rotation against float64 formulas, and against transformers to the last bit."""

import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_decoder import frequencies
from numpy_decoder import rotate as rotate_complex

from tokenswift_jax.models.hf_rope import rope_config
from tokenswift_jax.models.rope import inverse_frequencies, rotation

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# name -> (head_dim, HF's fields, the oracle's)
CASES = {
    "default": (64, {"rope_theta": 1e6}, (1e6, None)),
    "linear": (
        80,
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.5},
        (1e4, {"kind": "linear", "factor": 2.5}),
    ),
    "llama3": (
        128,
        {"rope_theta": 5e5, "rope_type": "llama3"} | LLAMA3,
        (5e5, {"kind": "llama3", "factor": 8, "low": 1, "high": 4, "original": 8192}),
    ),
    "yarn": (
        128,
        {"rope_theta": 1e4, "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        (1e4, {"kind": "yarn", "factor": 32, "original": 4096}),
    ),
    "yarn, every field": (
        64,
        {
            "rope_theta": 1e6,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
            "truncate": False,
        },
        (
            1e6,
            {
                "kind": "yarn",
                "factor": 4,
                "original": 32768,
                "beta_fast": 24,
                "beta_slow": 2,
                "attention_factor": 1.25,
                "truncate": False,
            },
        ),
    ),
}
POSITIONS = np.array([0, 1, 17, 4095, 100_000])


@pytest.mark.parametrize("name", CASES)
def test_float64_frequencies_are_the_formula(name):
    head_dim, fields, (theta, scaling) = CASES[name]
    actual, factor = inverse_frequencies(
        rope_config({"rope_parameters": fields}, 131072), head_dim, np.dtype("float64")
    )
    expected, expected_factor = frequencies(head_dim, theta, scaling)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)  # a few float64 roundings
    assert factor == pytest.approx(expected_factor, rel=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_float32_frequencies_are_transformers_bits(name):
    if importlib.util.find_spec("torch") is None:
        warnings.warn("torch is not installed: RoPE is NOT compared with transformers here", stacklevel=1)
        pytest.skip("needs torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    head_dim, fields, _ = CASES[name]
    config = LlamaConfig(
        head_dim=head_dim, max_position_embeddings=131072, rope_parameters={"rope_type": "default"} | fields
    )
    default = LlamaRotaryEmbedding.compute_default_rope_parameters
    expected, factor = ROPE_INIT_FUNCTIONS.get(fields.get("rope_type", "default"), default)(config)
    actual, actual_factor = inverse_frequencies(
        rope_config({"rope_parameters": fields}, 131072), head_dim, np.dtype("float32")
    )
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected.numpy())
    assert actual_factor == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_rotation_turns_pairs_by_position_times_frequency(name):
    head_dim, fields, (theta, scaling) = CASES[name]
    x = np.random.default_rng(0).normal(size=(len(POSITIONS), head_dim))
    turns, factor = frequencies(head_dim, theta, scaling)
    with jax.enable_x64(True):
        positions = jnp.asarray(POSITIONS, jnp.int32)[None]
        turning = rotation(
            rope_config({"rope_parameters": fields}, 131072), head_dim, positions, jnp.dtype(jnp.float64)
        )
        actual = np.asarray(turning.apply(jnp.asarray(x)[None, :, None]))[0, :, 0]
    # 1e5 radians keep 16 - 5 digits
    np.testing.assert_allclose(actual, rotate_complex(x, POSITIONS[:, None] * np.array(turns), factor), atol=1e-10)


def test_float32_angles_follow_positions_without_a_table():
    rope = rope_config({"rope_theta": 10000.0}, 4096)
    turning = rotation(rope, 16, jnp.asarray([[131_071, 5]], jnp.int32), jnp.dtype(jnp.float32))
    angles = np.float32(131_071) * inverse_frequencies(rope, 16, np.dtype("float32"))[0]
    assert angles.dtype == np.float32
    # the angle itself is rounded in float32 (as transformers does); of that angle, sine and cosine are exact to an ulp
    np.testing.assert_allclose(np.asarray(turning.cos)[0, 0], np.cos(angles.astype(np.float64)), atol=2e-7)
    np.testing.assert_allclose(np.asarray(turning.sin)[0, 0], np.sin(angles.astype(np.float64)), atol=2e-7)


def test_a_program_computes_each_cosine_once():
    """XLA for CPUs, as in a decoder, where every layer rotates queries and keys by the same angles."""
    rope = rope_config({"rope_theta": 10000.0}, 4096)

    def layers(positions, x):
        turning = rotation(rope, 16, positions, jnp.dtype(jnp.float32))
        for _ in range(3):
            x = jnp.tanh(jnp.einsum("brhd,de->brhe", turning.apply(x), jnp.eye(16)))
        return x

    compiled = jax.jit(layers).lower(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3, 2, 16))).compile().as_text()
    assert compiled is not None
    assert (compiled.count(" cosine("), compiled.count(" sine(")) == (1, 1)
