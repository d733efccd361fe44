"""Best-scoring blocks and positions by every implementation, the kernels interpreted, against NumPy float64.

Slots that are not eligible, and all other layers, hold NaN (127 in int8).
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import calls_a_kernel

from pallas_kernels.cache_scores import top_blocks, top_positions, tpu
from pallas_kernels.gpus import A100, H200
from pallas_kernels.implementation import compiling_for

LAYERS, LAYER = 2, 1
BEGINS, ENDS = [16, 40, 0], [1280, 515, 1]


@dataclass(frozen=True)
class Shape:
    group: int = 4
    head_dim: int = 128
    kv_heads: int = 2
    capacity: int = 1280
    block: int = 16
    dtype: str = "float32"
    cache_dtype: str | None = None  # None: dtype


def make(rng, shape, begins, ends):
    """Query, keys, scales, and the float64 scores [batch, kv_heads, blocks] of blocks, -inf where not eligible."""
    batch = len(begins)
    dtype = jnp.dtype(shape.cache_dtype or shape.dtype)
    slots = np.arange(shape.capacity)
    live = (slots >= np.asarray(begins)[:, None]) & (slots < np.asarray(ends)[:, None])
    live = np.broadcast_to(live[:, None], (batch, shape.kv_heads, shape.capacity))
    whole = dtype == jnp.int8
    keys = np.full((LAYERS, *live.shape, shape.head_dim), 127 if whole else np.nan, np.float32)
    drawn = rng.normal(size=(live.sum(), shape.head_dim))
    keys[LAYER, live] = np.round(drawn * 30) if whole else drawn
    keys = jnp.asarray(keys).astype(dtype)
    scales = None
    if dtype.itemsize == 1:
        scales = np.full((LAYERS, *live.shape), np.nan, np.float32)
        scales[LAYER, live] = rng.uniform(0.5, 1.5, live.sum())
    query = jnp.asarray(rng.normal(size=(batch, shape.kv_heads * shape.group, shape.head_dim)), shape.dtype)
    wide_query = np.asarray(query).astype(np.float64).reshape(batch, shape.kv_heads, shape.group, shape.head_dim)
    wide_keys = np.asarray(keys[LAYER].astype(jnp.float32)).astype(np.float64)
    scores = np.einsum("bhgd,bhcd->bhc", wide_query, wide_keys) * (1 if scales is None else scales[LAYER])
    scores = np.where(live, scores, -np.inf).reshape(batch, shape.kv_heads, -1, shape.block).max(axis=-1)
    return query, keys, None if scales is None else jnp.asarray(scales), scores


def ranked(query, keys, scales, begins, ends, count, block):
    ranges = {"begins": begins, "ends": ends, "count": count, "key_scales": scales}
    if block == 1:
        return top_positions(query, keys, layer=LAYER, **ranges)
    return top_blocks(query, keys, layer=LAYER, **ranges, block_size=block)


# LLVM's optimisation takes longer than these small programs run; it changes only the order of rounding.
run = jax.jit(ranked, static_argnames=("count", "block"), compiler_options={"xla_backend_optimization_level": 0})


def check(name, shape, begins, ends, count=20, gpu=None):
    query, keys, scales, scores = make(np.random.default_rng(len(begins)), shape, begins, ends)
    arguments = query, keys, scales, jnp.asarray(begins, jnp.int32), jnp.asarray(ends, jnp.int32)
    kernel = nullcontext() if name == "reference" else compiling_for(name, interpret=True, gpu=gpu or H200)
    with kernel:
        found = np.asarray(run(*arguments, count=count, block=shape.block))
    for row in range(len(begins)):
        for head in range(shape.kv_heads):
            order = np.argsort(-scores[row, head], kind="stable")[:count]
            eligible = np.isfinite(scores[row, head, order])
            of_head = found[row, head, : len(order)]
            assert (of_head[~eligible] == -1).all()
            assert (found[row, head, len(order) :] == -1).all()
            # Scores reach some hundreds (thousands in int8); float32 may swap two that are closer than its rounding.
            actual = scores[row, head, of_head[eligible]]
            top = scores[row, head, order[eligible]]
            np.testing.assert_allclose(actual, top, rtol=1e-6, atol=1e-4)
            assert len(np.unique(of_head[eligible])) == eligible.sum()


each = pytest.mark.parametrize("name", ["reference", "tpu", "gpu"])


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Steps on TPU of the fewest slots there are, so that short lengths have many."""
    monkeypatch.setattr(tpu, "STEP_BYTES", 1)


@each
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(group=1, head_dim=64, block=1, dtype="bfloat16"),
        Shape(group=7, head_dim=80, kv_heads=1, block=256, dtype="bfloat16", cache_dtype="int8"),
        Shape(group=8, head_dim=96, kv_heads=1, block=64, cache_dtype="float8_e4m3fn"),
    ],
    ids=str,
)
def test_shapes(name, shape):
    """Ranges that begin and end inside blocks, a single slot, and none."""
    check(name, shape, BEGINS, ENDS)
    check(name, shape, [128, 1279, 300], [1024, 1280, 300])


def test_on_gpu_alone():
    """float16, and float8 by its bits, for a GPU that knows none."""
    check("gpu", Shape(dtype="float16", head_dim=64, cache_dtype="float8_e4m3fn"), BEGINS, ENDS, gpu=A100)


@each
def test_the_longest_text(name, monkeypatch):
    monkeypatch.setattr(tpu, "STEP_BYTES", 2**20)  # the interpreter pays for every step
    shape = Shape(group=1, head_dim=16, kv_heads=1, capacity=131_072, block=256)
    check(name, shape, [16], [131_072])
    check(name, shape, [131_000], [131_071])


def test_blocks_must_divide_the_capacity():
    query, keys = jnp.zeros((1, 2, 16)), jnp.zeros((1, 1, 1, 100, 16))
    at = jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="100 slots is no multiple of blocks of 16"):
        top_blocks(query, keys, layer=0, begins=at, ends=at, count=1, block_size=16)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        (Shape(4, 128, 8, 131_072, 64, dtype="bfloat16"), 1),
        (Shape(7, 64, 4, 131_072, 16, dtype="bfloat16"), 4),
        (Shape(1, 80, 32, 131_072, 128, dtype="bfloat16"), 1),
        (Shape(4, 128, 8, 131_072, 1, dtype="bfloat16", cache_dtype="int8"), 1),
    ],
    ids=str,
)
def test_lowering(name, shape, batch, monkeypatch):
    """At the sizes of real models, as far as it goes without the device's own compiler."""
    monkeypatch.undo()
    cache = (LAYERS, batch, shape.kv_heads, shape.capacity, shape.head_dim)
    arguments = (
        jax.ShapeDtypeStruct((batch, shape.kv_heads * shape.group, shape.head_dim), shape.dtype),
        jax.ShapeDtypeStruct(cache, shape.cache_dtype or shape.dtype),
        jax.ShapeDtypeStruct(cache[:4], jnp.float32) if shape.cache_dtype else None,
        *[jax.ShapeDtypeStruct((batch,), jnp.int32)] * 2,
    )
    assert calls_a_kernel(name, partial(ranked, count=62, block=shape.block), *arguments)


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "message"),
    [
        ("tpu", "float16", 64, "the query is float16; the TPU kernel takes bfloat16 and float32"),
        ("tpu", "bfloat16", 20, "head_dim is 20; the TPU kernel takes multiples of 8"),
        ("gpu", "bfloat16", 512, "head_dim is 512; the GPU kernel takes up to 256"),
    ],
)
def test_limits(name, dtype, head_dim, message):
    query, keys = jnp.zeros((1, 2, head_dim), dtype), jnp.zeros((1, 1, 2, 256, head_dim), dtype)
    at = jnp.zeros(1, jnp.int32)
    with compiling_for(name), pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(lambda q, k: top_positions(q, k, layer=0, begins=at, ends=at, count=1), query, keys)
