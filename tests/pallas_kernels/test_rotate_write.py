"""Rotation and cache write against NumPy in float64, by every implementation; no other slot changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.implementation import compiling_for
from pallas_kernels.rotate_write import HeadNorms, rotate_write

LAYERS, LAYER, CAPACITY, EPS = 3, 1, 12, 1e-6
STARTS = (2, 7)
BOUND = {"float32": 1e-5, "bfloat16": 2**-6}


def case(rows, group, kv_heads, head_dim, dtype, normed):
    rng = np.random.default_rng(rows * group + head_dim)
    heads = rng.normal(size=(len(STARTS), rows, kv_heads, group + 2, head_dim))
    angles = rng.uniform(0, 100, size=(len(STARTS), rows, head_dim // 2))
    cache = np.full((2, LAYERS, len(STARTS), kv_heads, CAPACITY, head_dim), np.nan)
    cache[..., :2, :] = rng.normal(size=cache[..., :2, :].shape)
    scales = rng.uniform(0.5, 1.5, size=(2, head_dim))
    to = {"heads": heads, "keys": cache[0], "values": cache[1]}
    given = {name: jnp.asarray(x, dtype) for name, x in to.items()}
    given |= {"cos": jnp.asarray(np.cos(angles), jnp.float32), "sin": jnp.asarray(np.sin(angles), jnp.float32)}
    norms = HeadNorms(*(jnp.asarray(x, dtype) for x in scales), EPS) if normed else None
    return given, norms


def run(way, given, norms, traced):
    starts = jnp.asarray(STARTS, jnp.int32)
    with compiling_for(way, interpret=way != "reference"):
        if traced:
            call = jax.jit(lambda layer, given: rotate_write(**given, layer=layer, starts=starts, norms=norms))
            return call(jnp.int32(LAYER), given)
        return jax.jit(lambda given: rotate_write(**given, layer=LAYER, starts=starts, norms=norms))(given)


def wide(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(
    ("rows", "group", "kv_heads", "head_dim", "normed"),
    [(1, 4, 2, 64, False), (5, 3, 1, 32, True), (3, 1, 2, 128, True)],
)
@pytest.mark.parametrize("way", ["reference", "gpu"])
def test_heads_are_rotated_and_written(way, rows, group, kv_heads, head_dim, normed, dtype):
    given, norms = case(rows, group, kv_heads, head_dim, dtype, normed)
    found = run(way, given, norms, traced=rows == 1)
    heads, cos, sin = (wide(given[name]) for name in ("heads", "cos", "sin"))

    def turned(x, scale):
        if norms is not None:
            x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * wide(scale)
        first, second = np.split(x, 2, axis=-1)
        c, s = cos[:, :, None, None], sin[:, :, None, None]
        return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)

    queries = turned(heads[..., :group, :], norms and norms.queries)
    keys = turned(heads[..., group : group + 1, :], norms and norms.keys)[..., 0, :]
    bound = {"rtol": BOUND[dtype], "atol": BOUND[dtype]}
    np.testing.assert_allclose(wide(found.queries), queries.reshape(len(STARTS), rows, -1, head_dim), **bound)
    np.testing.assert_allclose(wide(found.own_keys), keys, **bound)
    np.testing.assert_array_equal(wide(found.own_values), heads[..., -1, :])
    for stack, old, own in (
        (found.keys, given["keys"], found.own_keys),
        (found.values, given["values"], found.own_values),
    ):
        expected = wide(old)
        for text, start in enumerate(STARTS):
            expected[LAYER, text, :, start : start + rows] = wide(own)[text].swapaxes(0, 1)
        np.testing.assert_array_equal(wide(stack), expected)


def test_the_kernel_gives_a_row_alone_what_it_gives_among_others():
    given, norms = case(4, 3, 2, 64, "bfloat16", True)
    together = run("gpu", given, norms, traced=False)
    for row in range(4):
        one = given | {name: given[name][:, row : row + 1] for name in ("heads", "cos", "sin")}
        alone = run("gpu", one, norms, traced=False)
        for name in ("queries", "own_keys", "own_values"):
            np.testing.assert_array_equal(wide(getattr(alone, name))[:, 0], wide(getattr(together, name))[:, row])
