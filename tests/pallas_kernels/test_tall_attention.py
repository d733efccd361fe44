"""Attention of many rows in two halves, whole blocks and the rest, against dense attention in NumPy float64."""

from functools import partial

import attention_cases
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import LAYER, Shape, make
from lowering import lowered

from pallas_kernels.gpus import A100, H200, Gpu
from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import gpu, tall, tree_attention

CAPACITY = 640


def walked(queries, keys, values, begins, ends, scale):
    """`tall.walk_ranges` as it is defined; fails at a span that is not of whole blocks."""
    assert (np.asarray(begins) % tall.BLOCK == 0).all()
    assert (np.asarray(ends) % tall.BLOCK == 0).all()
    slots = jnp.arange(keys.shape[0])[None, None]
    seen = (slots >= begins[..., None]) & (slots < ends[..., None])
    live = seen.any(axis=(0, 1))[:, None]
    keys, values = jnp.where(live, keys, 0), jnp.where(live, values, 0)
    scores = jnp.where(seen, jnp.einsum("rhd,sd->hrs", queries, keys) * scale, -jnp.inf)
    peak = scores.max(axis=-1)
    weights = jnp.where(seen, jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0)[..., None]), 0)
    return jnp.einsum("hrs,sd->rhd", weights, values), peak, weights.sum(axis=-1)


def attended(arguments, window=None, multiprocessors=24):
    """The result, by `tall_attention` over that walk and the Triton kernel in its interpreter."""
    assert window is None
    arguments = arguments | {"layer": LAYER, "scale": arguments["queries"].shape[-1] ** -0.5}
    cache = {name: arguments[name] for name in ("queries", "keys", "values", "layer", "lengths", "scale")}
    with compiling_for("gpu", interpret=True, gpu=Gpu((9, 0), multiprocessors)):
        rest = partial(gpu.tree_attention, **arguments, window=None, return_lse=True)
        out, lse = tall.tall_attention(**cache, rest=lambda begins: rest(begins=begins), walk=walked)
        _, expected = gpu.tree_attention(**arguments, window=None, return_lse=True)
    np.testing.assert_allclose(lse, expected, rtol=1e-5, atol=1e-5)
    return out


@pytest.mark.parametrize(
    ("shape", "lengths", "multiprocessors"),
    [
        (Shape(group=4, rows=32, head_dim=32, capacity=CAPACITY), [0, 127], 24),
        (Shape(group=4, rows=32, head_dim=32, capacity=CAPACITY), [128, 129], 24),
        (Shape(group=7, rows=20, head_dim=16, capacity=CAPACITY), [640, 517], 24),
        (Shape(group=1, rows=130, head_dim=16, kv_heads=1, capacity=CAPACITY), [513], 1),
    ],
    ids=str,
)
def test_two_halves_are_the_whole(shape, lengths, multiprocessors):
    """Slots past the length hold NaN; so do those of other layers."""
    arguments = make(np.random.default_rng(len(lengths)), shape, lengths)
    attention_cases.check(partial(attended, multiprocessors=multiprocessors), arguments)


def test_a_row_that_overflowed_spoils_those_that_see_it():
    shape = Shape(group=4, rows=32, head_dim=16, capacity=CAPACITY)
    arguments = make(np.random.default_rng(0), shape, [300])
    arguments["own_values"] = arguments["own_values"].at[0, 5].set(jnp.inf)
    spoiled = np.any(np.isnan(attended(arguments)), axis=(2, 3))[0]
    np.testing.assert_array_equal(spoiled, np.asarray(arguments["tree_mask"])[0, :, 5])


def test_on_hopper_a_library_walks_and_our_kernel_does_the_rest(monkeypatch):
    pytest.importorskip("tokamax")
    monkeypatch.setattr("pallas_kernels.tree_attention.gpu.TALL", True)  # off until a GPU has timed it
    shape = Shape(group=4, rows=32, head_dim=128, capacity=CAPACITY, dtype="bfloat16")
    arguments = make(np.random.default_rng(0), shape, [300])
    attend = partial(tree_attention, layer=LAYER, window=None)
    called = {target: lowered("gpu", lambda a: attend(**a), arguments, gpu=target) for target in (H200, A100)}
    assert ["mosaic_gpu" in text for text in called.values()] == [True, False]
    assert all("__gpu$xla.gpu.triton" in text for text in called.values())


def test_who_is_served():
    queries, keys = jnp.zeros((1, 64, 8, 128), jnp.bfloat16), jnp.zeros((1, 1, 2, 256, 128), jnp.bfloat16)
    for target in (A100, H200):
        with compiling_for("gpu", gpu=target):
            assert not tall.serves(64, queries, keys)
            assert not tall.serves(256, queries.astype(jnp.float32), keys)
            assert not tall.serves(256, queries, keys.astype(jnp.int8))
            assert not tall.serves(256, queries, keys[:, :, :, :200])
    with compiling_for("gpu", gpu=A100):
        assert not tall.serves(256, queries, keys)
