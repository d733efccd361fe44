"""Axes that fields name: slots, shardings and bytes follow from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.commit_text.reference import write_at
from tokenswift_jax import arrays
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.parallel import rules


@pytree
class Inner:
    keys: jax.Array = axes("layers", "batch", "slots")
    scales: jax.Array | None = axes("batch", "slots", default=None)


@pytree
class Outer:
    inner: Inner
    length: jax.Array = axes("batch")


def tree(batch, slots, start=0.0):
    keys = jnp.arange(2 * batch * slots, dtype=jnp.float32).reshape(2, batch, slots) + start
    return Outer(Inner(keys), jnp.arange(batch, dtype=jnp.int32) + int(start))


def test_a_row_is_put_and_taken():
    whole, row = tree(3, 5), tree(1, 2, 100.0)
    put = jax.jit(arrays.put_row)(whole, row, jnp.int32(2))
    expected = np.array(whole.inner.keys)
    expected[:, 2, :2] = np.asarray(row.inner.keys)[:, 0]
    np.testing.assert_array_equal(put.inner.keys, expected)
    assert put.length.tolist() == [0, 1, 100]
    taken = arrays.take_row(put, jnp.int32(1))
    np.testing.assert_array_equal(taken.inner.keys, whole.inner.keys[:, 1:2])
    assert taken.length.tolist() == [1]
    assert taken.inner.scales is None


def test_tuples_of_dataclasses():
    both = tree(2, 3), tree(2, 4)
    assert arrays.axes_of(both) == tuple(map(arrays.axes_of, both))
    put = arrays.put_row(both, (tree(1, 1, 100.0), tree(1, 1, 200.0)), jnp.int32(0))
    assert [int(one.length[0]) for one in put] == [100, 200]
    assert arrays.axes_of(()) == ()


def test_a_field_without_axes_is_an_error():
    @pytree
    class Nameless:
        values: jax.Array

    with pytest.raises(TypeError, match="names no axes"):
        arrays.axes_of(Nameless(jnp.zeros(3)))


def test_bytes_a_device_stores():
    shapes = jax.eval_shape(lambda: tree(3, 5))
    whole = 4 * (2 * 3 * 5 + 3)
    assert rules.bytes_on_each({}, shapes) == whole
    assert rules.bytes_on_each({"data": 3}, shapes) == whole // 3
    assert rules.bytes_on_each({"data": 2, "model": 4}, shapes) == whole, "3 rows are not cut in two"


def test_shardings_follow_the_names():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    found = rules.shardings(mesh, tree(2, 4))
    assert (found.inner.keys.spec, found.inner.scales, found.length.spec) == (P(None, "data"), None, P("data"))
    assert rules.shardings(mesh, tree(3, 4)).length.spec == P(), "3 rows are not cut in two"


@pytree
class Kept:
    entries: jax.Array = axes("batch", "slots")


@pytree
class Whole:
    outer: Outer
    parts: tuple[Kept, ...] = arrays.apart("batch")


def test_shapes_that_agree():
    """Entries of a field that is apart have as many slots as they like."""
    whole = Whole(tree(3, 5), (Kept(jnp.zeros((3, 2))), Kept(jnp.zeros((3, 7)))))
    arrays.check_shapes(state=whole, settings=jax.eval_shape(lambda: tree(3, 5)))
    arrays.check_shapes(settings=tree(3, 5), other=(None, ()))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (
            lambda: {"state": Outer(Inner(jnp.zeros((2, 3))), jnp.zeros(3))},
            r"^state\.inner\.keys has shape \[2, 3\] and its dimensions are \[layers, batch, slots\]$",
        ),
        (
            lambda: {"state": Outer(Inner(jnp.zeros((2, 3, 5))), jnp.zeros(4))},
            r"^state\.length has 4 for batch in shape \[4\], and state\.inner\.keys has 3$",
        ),
        (
            lambda: {"state": Outer(Inner(jnp.zeros((2, 3, 5)), jnp.zeros((3, 6))), jnp.zeros(3))},
            r"^state\.inner\.scales has 6 for slots in shape \[3, 6\], and state\.inner\.keys has 5$",
        ),
        (
            lambda: {"state": tree(3, 5), "settings": tree(2, 5)},
            r"^settings\.inner\.keys has 2 for batch in shape \[2, 2, 5\], and state\.inner\.keys has 3$",
        ),
        (
            lambda: {"state": Whole(tree(3, 5), (Kept(jnp.zeros((2, 5))),))},
            r"^state\.parts\[0\]\.entries has 2 for batch in shape \[2, 5\], and state\.outer\.inner\.keys has 3$",
        ),
    ],
)
def test_a_shape_that_does_not_agree_is_one_clear_error(wrong, error):
    with pytest.raises(ValueError, match=error):
        arrays.check_shapes(**wrong())


@pytest.mark.parametrize("batch", [1, 3])
def test_write_at(batch):
    whole, new = np.zeros((batch, 9, 2), np.float32), np.ones((batch, 3, 2), np.float32)
    starts = np.array([4, 0, 6], np.int32)[:batch]
    written = jax.jit(write_at)(whole, new, starts)
    for row, start in enumerate(starts):
        expected = np.zeros((9, 2))
        expected[start : start + 3] = 1
        np.testing.assert_array_equal(written[row], expected)


def test_write_at_is_one_program_for_any_batch():
    def equations(batch):
        shapes = [jax.ShapeDtypeStruct((batch, *rest), jnp.int32) for rest in ((9,), (3,), ())]
        return len(jax.make_jaxpr(write_at)(*shapes).jaxpr.eqns)

    assert equations(2) == equations(64)


def test_every_field_of_a_decode_s_state_names_its_axes():
    from tokenswift_jax.step.state import DecodeState

    assert {field.name for field in dataclasses.fields(DecodeState) if "axes" not in field.metadata} == {
        "cache",
        "drafter",
    }


def test_a_decode_s_state_has_no_optional_fields():
    from tokenswift_jax.step.state import DecodeState

    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(DecodeState))
