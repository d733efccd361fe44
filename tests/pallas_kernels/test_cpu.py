"""The Numba kernels for CPUs against float64 sums and the reference; a row's sums do not depend on other rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import LAYER, Shape, make, sequence

from pallas_kernels import cpu
from pallas_kernels.few_rows import product, product_of_lines, products
from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import reference, tree_attention
from tokenswift_jax.kv.dense import write_rows

pytest.importorskip("numba")
# Outputs that do and do not fill vectors, fewer and more than inputs, and more than are summed in parts; inputs that do
# and do not fill steps of 8.
OUTPUTS = (576, 2100, 33, 7, 8201)
RNG = np.random.default_rng(0)
ROW = RNG.standard_normal(592).astype(np.float32)


def rows(count, inputs):
    return np.concatenate([ROW[None, :inputs], RNG.standard_normal((count - 1, inputs), dtype=np.float32)])


def served(function, *arguments, **options):
    """The call's result and whether a Numba kernel computed it."""
    traced = jax.jit(lambda *given: function(*given, **options))
    return traced(*arguments), "tokenswift_" in traced.lower(*arguments).as_text()


@pytest.mark.parametrize("inputs", [592, 589, 5])
def test_products_are_right_and_a_row_does_not_notice_the_others(inputs):
    matrices = [RNG.standard_normal((inputs, count), dtype=np.float32) for count in OUTPUTS]
    alone = None
    for count in (1, 2, 4, 7, 9, 16):
        x = rows(count, inputs)
        found, by_numba = served(products, x, matrices)
        assert by_numba
        for w, y in zip(matrices, found, strict=True):
            np.testing.assert_allclose(y, x.astype(np.float64) @ w, atol=3e-4)
        first = [y[0] for y in found]
        alone = alone or first
        for one, other in zip(alone, first, strict=True):
            np.testing.assert_array_equal(one, other)


def test_products_of_lines_are_right_and_a_row_does_not_notice_the_others():
    w, alone = RNG.standard_normal((1003, 592), dtype=np.float32), None
    for count in (1, 3, 6, 16):
        x = rows(count, 592).reshape(1, count, 592)
        y, by_numba = served(product_of_lines, x, w, dtype=jnp.float32)
        assert by_numba
        assert y.shape == (1, count, 1003)
        np.testing.assert_allclose(y, x.astype(np.float64) @ w.T, atol=3e-4)
        alone = y[0, 0] if alone is None else alone
        np.testing.assert_array_equal(alone, y[0, 0])


def test_xla_computes_the_rest():
    x, w = np.ones((17, 32), np.float32), np.ones((32, 16), np.float32)
    for rows_, dtype in ((x, jnp.float32), (x[:2].astype(jnp.bfloat16), jnp.bfloat16)):
        assert not served(product, rows_, w.astype(dtype), dtype=dtype)[1]
    with compiling_for("reference"):
        assert not served(product, x[:2], w, dtype=jnp.float32)[1]


def test_derivatives_are_those_of_the_product():
    x, w = rows(2, 592), RNG.standard_normal((592, 16), dtype=np.float32)
    found = jax.grad(lambda w: (product(x, w, jnp.float32) ** 2).sum())(w)
    np.testing.assert_allclose(found, jax.grad(lambda w: ((x @ w) ** 2).sum())(w), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("rows", "group"), [(1, 3), (5, 2)])
def test_attention_agrees_with_the_reference(rows, group):
    # Whole blocks and parts of one, a sequence without a prefix.
    lengths = [512, 1041, 0, 3]
    arguments = make(np.random.default_rng(rows), Shape(group=group, rows=rows, head_dim=64), lengths)
    options = {"layer": LAYER, "window": None, "return_lse": True}
    run = jax.jit(lambda given: tree_attention(**given, **options))
    assert "tokenswift_attention" in run.lower(arguments).as_text()
    expected = reference.tree_attention(**arguments, **options, scale=64**-0.5)
    found, alone = run(arguments), run(sequence(arguments, 1))
    for got, wanted, single in zip(found, expected, alone, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(got[1], single[0])


def test_a_broken_tree_row_spoils_the_rows_that_see_it():
    arguments = make(np.random.default_rng(9), Shape(rows=3, head_dim=64), [40])
    mask = jnp.asarray([[[True, False, False], [True, True, False], [True, False, True]]])
    arguments |= {"tree_mask": mask, "own_values": arguments["own_values"].at[:, 1].set(jnp.inf)}
    mixed = np.asarray(tree_attention(**arguments, layer=LAYER, window=None))
    assert [np.isfinite(mixed[0, row]).all() for row in range(3)] == [True, False, True]


def test_rows_are_written_in_place_and_nowhere_else():
    rng = np.random.default_rng(3)
    stack, rows_ = rng.standard_normal((3, 2, 2, 9, 64)), rng.standard_normal((2, 2, 2, 3, 64))
    stack, rows_, starts = jnp.asarray(stack, jnp.float32), jnp.asarray(rows_, jnp.float32), jnp.asarray([6, 1])
    run = jax.jit(write_rows, donate_argnums=0)
    lowered = run.lower(stack, rows_, 1, starts)
    assert "tokenswift_write" in lowered.as_text()
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows_.nbytes
    expected = np.asarray(stack).copy()
    for text, start in enumerate([6, 1]):
        expected[1:, text, :, start : start + 3] = np.asarray(rows_)[:, text]
    np.testing.assert_array_equal(run(stack, rows_, 1, starts), expected)


def test_xla_computes_everything_where_the_kernels_do_not_load(monkeypatch):
    def refused(name):
        raise RuntimeError(f"{name}: an interface that XLA does not know")

    x, w = np.ones((2, 32), np.float32), np.ones((32, 16), np.float32)
    monkeypatch.setattr(cpu.importlib, "import_module", refused)
    monkeypatch.setattr(cpu, "_registered", cpu._registered.__wrapped__)
    with pytest.warns(UserWarning, match="XLA computes every step: pallas_kernels.cpu.product: an interface"):
        found, by_numba = served(product, x, w, dtype=jnp.float32)
    assert not by_numba
    np.testing.assert_array_equal(found, np.full((2, 16), 32, np.float32))
