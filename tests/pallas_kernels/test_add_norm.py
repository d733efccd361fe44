"""A sum and its norm against NumPy in float64, by every implementation; a row does not depend on its neighbours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.add_norm import add_norm
from pallas_kernels.implementation import compiling_for

EPS = 1e-5
BOUND = {"float32": 2e-6, "bfloat16": 2**-7}


def case(rows, size, dtype):
    rng = np.random.default_rng(rows + size)
    stream, added, scale = rng.normal(size=(2, rows, size)), rng.normal(size=(2, rows, size)), rng.normal(size=size)
    return [jnp.asarray(each, dtype) for each in (stream * 10, added, 1 + scale / 4)]


def run(way, *given):
    with compiling_for(way, interpret=way != "reference"):
        return [np.asarray(each.astype(jnp.float32)) for each in jax.jit(lambda *a: add_norm(*a, EPS))(*given)]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("size", [64, 576, 1024])
@pytest.mark.parametrize("way", ["reference", "gpu"])
def test_the_sum_and_its_norm_are_those_of_float64(way, size, dtype):
    given = case(3, size, dtype)
    stream, added, scale = (np.asarray(each.astype(jnp.float32), np.float64) for each in given)
    summed, normed = run(way, *given)
    # The norm is that of the rounded sum, which later layers read too.
    rounded = np.asarray((given[0] + given[1]).astype(jnp.float32), np.float64)
    np.testing.assert_array_equal(summed, rounded)
    np.testing.assert_allclose(summed, stream + added, rtol=BOUND[dtype], atol=BOUND[dtype] * 20)
    expected = rounded / np.sqrt((rounded**2).mean(axis=-1, keepdims=True) + EPS) * scale
    np.testing.assert_allclose(normed, expected, rtol=BOUND[dtype], atol=BOUND[dtype])


def test_the_kernel_gives_a_row_alone_what_it_gives_among_others():
    stream, added, scale = case(5, 576, "bfloat16")
    together = run("gpu", stream, added, scale)
    for row in range(5):
        alone = run("gpu", stream[:, row : row + 1], added[:, row : row + 1], scale)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[:, 0], many[:, row])


@pytest.mark.skipif(jax.__version_info__ < (0, 11, 1), reason="jax before 0.11.1 calls Mosaic GPU otherwise")
@pytest.mark.parametrize("size", [1536, 4096])
def test_the_kernels_body_is_lowered_by_mosaic_too(monkeypatch, size):
    """Pallas' other back end for GPUs takes the same body, called by its own function."""
    from jax.experimental.pallas import mosaic_gpu

    from pallas_kernels.add_norm import gpu

    monkeypatch.setattr(gpu.pl, "program_id", lambda axis: jax.lax.axis_index("row"))
    rows, scale = jax.ShapeDtypeStruct((16, size), jnp.bfloat16), jax.ShapeDtypeStruct((size,), jnp.bfloat16)
    body = partial(gpu._row, gpu.powers_of_two(size), EPS)
    call = mosaic_gpu.kernel(body, out_type=[rows, rows], grid=(16,), grid_names=("row",))
    lowered = jax.jit(call).trace(rows, rows, scale).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in lowered


def test_a_float64_stream_is_the_references():
    with jax.enable_x64(True), compiling_for("gpu", interpret=True):
        ones = jnp.ones((1, 64), jnp.float64)
        summed, _ = add_norm(ones, ones * 1e-12, jnp.ones((64,), jnp.float64), EPS)
        assert float(summed[0, 0]) == 1 + 1e-12
