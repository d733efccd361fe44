"""The full cache: sizes, and rows laid into it against NumPy assignments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenswift_jax.kv.dense import cache_bytes, empty_cache, round_up, take_rows, write_rows
from tokenswift_jax.models.hf_config import model_config

CONFIG = model_config(
    {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_an_empty_cache(dtype):
    cache = empty_cache(CONFIG, 2, 512, jnp.dtype(dtype))
    assert cache.capacity == 512
    assert cache.keys.shape == cache.values.shape == (3, 2, 2, 512, 6)
    assert cache_bytes(CONFIG, 2, 512, jnp.dtype(dtype)) == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize(("size", "block", "rounded"), [(0, 256, 0), (1, 256, 256), (256, 256, 256), (257, 256, 512)])
def test_round_up(size, block, rounded):
    assert round_up(size, block) == rounded


@pytest.mark.parametrize("x64", [False, True])
def test_rows_lie_at_each_row_s_own_start(x64):
    rng = np.random.default_rng(0)
    stack, rows = rng.normal(size=(3, 4, 2, 32, 6)), rng.normal(size=(2, 4, 2, 5, 6))
    starts = [0, 27, 9, 26]
    with jax.enable_x64(x64):
        actual = jax.jit(write_rows, static_argnums=2)(
            jnp.asarray(stack), jnp.asarray(rows), 1, jnp.asarray(starts, jnp.int32)
        )
        expected = np.array(jnp.asarray(stack))
        for row, start in enumerate(starts):
            expected[1:, row, :, start : start + 5] = rows[:, row]
        np.testing.assert_array_equal(actual, expected)


def test_rows_along_a_path():
    rows = np.random.default_rng(1).normal(size=(3, 2, 2, 7, 6)).astype(np.float32)
    path = np.asarray([[0, 3, 6, 6], [0, 1, 1, 1]], np.int32)
    actual = take_rows(jnp.asarray(rows), jnp.asarray(path))
    np.testing.assert_array_equal(actual, np.stack([rows[:, b][:, :, path[b]] for b in range(2)], axis=1))
