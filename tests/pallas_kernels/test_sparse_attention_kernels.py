"""The TPU and GPU kernels of sparse attention, interpreted, against dense attention in NumPy float64; and lowered."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_cases
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from lowering import calls_a_kernel
from sparse_cases import Shape, make, without_own_rows

from pallas_kernels.gpus import A100, Gpu
from pallas_kernels.implementation import compiling_for
from pallas_kernels.sparse_attention import sparse_attention, tpu

SMALL = Gpu((9, 0), 12)
LENGTHS = ([1024, 0, 515], [1, 511, 33])
each_kernel = pytest.mark.parametrize("name", ["tpu", "gpu"])


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Few slots a step on TPU, so that short tables have many steps."""
    monkeypatch.setattr(tpu, "COLUMNS", 128)


def check(name, arguments, shape, interpret=True, gpu=SMALL):
    with compiling_for(name, interpret=interpret, gpu=gpu):
        sparse_cases.check(arguments, shape)


@each_kernel
@pytest.mark.parametrize(
    "shape",
    [
        Shape(block=16, table=20),
        Shape(group=4, rows=1, head_dim=64, block=64, table=11, kv_heads=1, cache_dtype="int8"),
        Shape(7, 3, 80, 1, 1024, 6, 128, "bfloat16", "float8_e4m3fn", window=300),
        Shape(group=8, rows=64, head_dim=96, kv_heads=1, block=16, dtype="bfloat16", window=200),
    ],
    ids=str,
)
def test_shapes(name, shape):
    """Lengths on both sides of a block's edges, a cache in full use and one that is empty, unequal in a batch."""
    rng = np.random.default_rng(0)
    for lengths in LENGTHS:
        check(name, make(rng, shape, lengths), shape)
    check(name, without_own_rows(make(rng, shape, [515, 0, 33])), shape)


def test_on_gpu_alone():
    """float16, and float8 by its bits, for a GPU that knows none."""
    shape = Shape(head_dim=64, dtype="float16", cache_dtype="float8_e4m3fn", kv_heads=1)
    check("gpu", make(np.random.default_rng(1), shape, LENGTHS[0]), shape, gpu=A100)


@each_kernel
def test_the_longest_text(name):
    shape = Shape(group=1, rows=2, head_dim=16, kv_heads=1, capacity=131_072, block=128, table=5)
    rng = np.random.default_rng(2)
    for length in (131_072, 131_071, 130_945):
        check(name, make(rng, shape, [length]), shape)


def test_no_race_on_tpu():
    """Fetches and arithmetic of two heads and several steps; a fetch is done as late as can be."""
    shape = Shape(rows=2, table=12)
    interpret = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait")
    check("tpu", make(np.random.default_rng(3), shape, [900, 40]), shape, interpret=interpret)
    assert interpreter.races is not None
    assert not interpreter.races.races_found


def abstract(shape, batch):
    """The arguments at the sizes of a real model, as shapes."""
    with jax.ensure_compile_time_eval():
        small = make(np.random.default_rng(0), replace(shape, capacity=shape.block, table=2), [1] * batch)
    sizes = {
        "keys": (2, batch, shape.kv_heads, shape.capacity, shape.head_dim),
        "blocks": (batch, shape.kv_heads, shape.table),
    }
    sizes |= {"values": sizes["keys"], "key_scales": sizes["keys"][:4], "value_scales": sizes["keys"][:4]}
    return {
        key: None if value is None else jax.ShapeDtypeStruct(sizes.get(key, value.shape), value.dtype)
        for key, value in small.items()
    }


@each_kernel
@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        (Shape(4, 1, 128, 8, 131_072, 64, 64, dtype="bfloat16"), 1),
        (Shape(7, 4, 128, 4, 131_072, 256, 16, dtype="bfloat16"), 4),
        (Shape(4, 16, 64, 8, 131_072, 64, 64, dtype="bfloat16", window=4096), 1),
        (Shape(1, 64, 80, 32, 131_072, 32, 128, dtype="bfloat16"), 1),
        (Shape(4, 1, 128, 8, 131_072, 64, 64, dtype="bfloat16", cache_dtype="int8"), 1),
    ],
    ids=str,
)
def test_lowering(name, shape, batch, monkeypatch):
    """At the sizes of real models, as far as it goes without the device's own compiler."""
    monkeypatch.undo()

    def program(arguments):
        return sparse_attention(**arguments, layer=jnp.int32(1), block_size=shape.block, window=shape.window)

    assert calls_a_kernel(name, program, abstract(shape, batch))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("tpu", Shape(dtype="float16"), "queries are float16; the TPU kernel takes bfloat16 and float32"),
        ("tpu", Shape(head_dim=20), "head_dim is 20; the TPU kernel takes multiples of 8"),
        ("tpu", Shape(head_dim=64, capacity=1056, block=32), "a capacity of 1056 slots is no multiple of 128"),
        ("gpu", Shape(head_dim=24), "head_dim is 24; the GPU kernel takes multiples of 16 up to 256"),
    ],
)
def test_limits(name, shape, message):
    arguments = abstract(shape, 1)
    with compiling_for(name), pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(lambda a: sparse_attention(**a, layer=1, block_size=shape.block, window=None), arguments)
