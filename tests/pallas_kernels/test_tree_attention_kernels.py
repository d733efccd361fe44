"""The TPU and GPU kernels, interpreted, against dense attention in NumPy float64; lowered for both without either."""

from functools import partial

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import LAYER, LAYERS, Shape, make, quantised
from flax import nnx
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from lowering import calls_a_kernel

from pallas_kernels.gpus import A100, H200, Gpu
from pallas_kernels.implementation import compiling_for
from pallas_kernels.tree_attention import tpu, tree_attention
from pallas_kernels.tree_attention.gpu import splits_for
from pallas_kernels.tree_attention.gpu_kernels import stored_numbers
from pallas_kernels.tree_attention.own_blocks import own_blocks
from pallas_kernels.tree_attention.pieces import head_pieces
from tests import tiny
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask

# Blocks of the kernels as they are tested here.
COLUMNS = 128
EDGES = sorted({1} | {block * times + by for block in (64, COLUMNS) for times in (0, 1, 3, 5) for by in (-1, 0, 1)})
EDGES = [length for length in EDGES if 0 <= length <= 640]
SMALL = Gpu((9, 0), 12)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Steps on TPU of the fewest slots there are, so that short lengths have many."""
    monkeypatch.setattr(tpu, "STEP_BYTES", 1)


@partial(jax.jit, static_argnames="window")
def traced(arguments, window=None):
    return tree_attention(**arguments, layer=jnp.int32(LAYER), window=window)


def interpreted(name, gpu=SMALL, interpret=True):
    """A function of (arguments, window) that runs one kernel in its interpreter."""

    def run(arguments, window=None):
        with compiling_for(name, interpret=interpret, gpu=gpu):
            return traced(arguments, window)

    return run


def check(name, arguments, window=None, **options):
    attention_cases.check(interpreted(name, **options), arguments, window)


each_kernel = pytest.mark.parametrize("name", ["tpu", "gpu"])


@each_kernel
def test_every_length_around_a_block_edge(name):
    """Beside another one in a batch, full caches among them: 640 slots are whole blocks."""
    rng = np.random.default_rng(0)
    for length, other in zip(EDGES, reversed(EDGES), strict=True):
        check(name, make(rng, Shape(group=4, rows=1, head_dim=64, kv_heads=1, capacity=640), [length, other]))


@each_kernel
@pytest.mark.parametrize(
    "shape",
    [
        Shape(group=7, rows=3, head_dim=80, capacity=300, dtype="bfloat16"),
        Shape(group=8, rows=5, head_dim=96, capacity=300, dtype="bfloat16"),
        Shape(group=1, rows=128, head_dim=128, kv_heads=4, capacity=500, dtype="bfloat16"),
    ],
    ids=str,
)
def test_groups_rows_and_head_sizes(name, shape):
    """Caches that are no multiple of a block, full and empty."""
    rng = np.random.default_rng(1)
    check(name, make(rng, shape, [shape.capacity, 0, 131]))


@each_kernel
def test_a_causal_chunk(name, monkeypatch):
    """Several tiles and blocks of new rows, none of them complete; a tile reads no block past its rows."""
    monkeypatch.setattr(tpu, "OWN_COLUMNS", 128)
    monkeypatch.setattr(tpu, "MOST_ROWS", 64)
    arguments = make(np.random.default_rng(9), Shape(rows=150, head_dim=16, capacity=300), [131, 0])
    arguments["tree_mask"] = jnp.broadcast_to(jnp.tril(jnp.ones((150, 150), bool)), (2, 150, 150))
    arguments["positions"] = arguments["lengths"][:, None] + jnp.arange(150, dtype=jnp.int32)[None, :]
    check(name, arguments, 145)


def test_own_blocks_of_a_tile():
    """Two query heads a row: tiles of 4 are rows 0..1, 2..3 and the last row twice."""
    causal = jnp.tril(jnp.ones((1, 5, 5), bool))
    np.testing.assert_array_equal(own_blocks(causal, 2, 4, 2), [[1, 2, 3]])
    np.testing.assert_array_equal(own_blocks(causal[:, ::-1], 2, 4, 2), [[3, 2, 1]])
    np.testing.assert_array_equal(own_blocks(causal, 2, 4, 8), [[1, 1, 1]])


def test_float16_on_gpu():
    check("gpu", make(np.random.default_rng(2), Shape(rows=9, head_dim=80, capacity=300, dtype="float16"), [299, 64]))


@pytest.mark.parametrize(("name", "gpu"), [("tpu", None), ("gpu", SMALL), ("gpu", Gpu((9, 0), 1))])
@pytest.mark.parametrize("window", [None, 70])
def test_log_sum_exp(name, gpu, window):
    """Beside the same result; from many splits of the length, and from a single one."""
    arguments = make(np.random.default_rng(4), Shape(group=3, rows=5, head_dim=64, capacity=300), [200, 0, 65])
    with compiling_for(name, interpret=True, gpu=gpu):
        run = jax.jit(partial(tree_attention, layer=LAYER, window=window, return_lse=True))
        mixed, lse = run(**arguments)
        attention_cases.check_without_own_rows(lambda given, _: run(**given), arguments, window)
    assert lse.dtype == jnp.float32
    attention_cases.check(lambda *_: mixed, arguments, window)
    # Scores of some ten, to an eps of float32 each.
    np.testing.assert_allclose(lse, attention_cases.log_sum_exp(arguments, window), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype", "gpu"),
    [
        ("tpu", "int8", None),
        ("tpu", "float8_e4m3fn", None),
        ("gpu", "int8", H200),
        ("gpu", "float8_e4m3fn", H200),
        ("gpu", "float8_e4m3fn", A100),  # which reads float8 by its bits
    ],
)
def test_numbers_with_scales(name, dtype, gpu):
    rng = np.random.default_rng(3)
    arguments = make(rng, Shape(group=4, rows=3, head_dim=64, capacity=300, dtype="bfloat16"), [200, 65])
    check(name, quantised(rng, arguments, dtype), gpu=gpu)


def test_every_float8_by_its_bits():
    """Each of the 256 patterns, the two NaNs among them."""
    patterns = jnp.arange(256, dtype=jnp.uint8)
    numbers = jax.lax.bitcast_convert_type(patterns, jnp.float8_e4m3fn).astype(jnp.float32)
    read = stored_numbers(patterns, True, jnp.dtype("bfloat16"))
    np.testing.assert_array_equal(np.asarray(read).astype(np.float32), numbers)


@each_kernel
@pytest.mark.parametrize("stored", [False, True], ids=["in text order", "in any order"])
def test_sliding_windows(name, stored):
    """With slots in any order, as a draft cache has them, positions of scratch slots mean nothing."""
    rng = np.random.default_rng(4)
    shape, lengths = Shape(rows=4, head_dim=16, capacity=700), [690, 33, 256]
    arguments = make(rng, shape, lengths)
    if stored:
        where = rng.integers(-(2**30), 2**30, (LAYERS, 3, shape.kv_heads, shape.capacity))
        for row, length in enumerate(lengths):
            for head in range(shape.kv_heads):
                where[LAYER, row, head, :length] = rng.permutation(1000)[:length]
        arguments |= {
            "key_positions": jnp.asarray(where, jnp.int32),
            "positions": arguments["positions"] - arguments["lengths"][:, None] + 1000,
        }
    check(name, arguments, 140)


@each_kernel
def test_a_spoiled_row_spoils_those_that_see_it(name):
    """An overflow in a drafted row's values makes NaN of its descendants' results and of no other row's."""
    arguments = make(np.random.default_rng(5), Shape(rows=4, head_dim=16, capacity=300), [200])
    mask = np.eye(4, dtype=bool) | (np.arange(4) == 0)
    mask[3, 2] = True
    arguments["tree_mask"] = jnp.asarray(mask[None])
    arguments["own_values"] = arguments["own_values"].at[0, 2, 1, 3].set(jnp.inf)
    actual = np.asarray(interpreted(name)(arguments))[0]
    expected = np.zeros(actual.shape, bool)
    expected[2:, 2:] = True  # rows 2 and 3, the query heads of KV head 1
    np.testing.assert_array_equal(np.isnan(actual), expected)


@each_kernel
def test_the_longest_text(name, monkeypatch):
    """131,072 slots in use of as many, and one less, in steps as they are on the device."""
    monkeypatch.undo()
    rng, capacity = np.random.default_rng(6), 131072
    shape = Shape(group=2, rows=2, head_dim=16, kv_heads=1, capacity=capacity)
    for length in (capacity, capacity - 1):
        check(name, make(rng, shape, [length]))


def test_no_race_on_tpu():
    """The pipeline's fetches run as on the device, and nothing is read before it has come."""
    options = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
    arguments = make(np.random.default_rng(7), Shape(rows=3, head_dim=64, capacity=384), [300, 129])
    try:
        check("tpu", arguments, interpret=options)
        assert interpreter.races is not None
        assert not interpreter.races.races_found
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@each_kernel
def test_a_decoder_over_a_cache(name):
    """A whole forward with the kernel gives the reference's hidden states, cache and all."""
    config = tiny.tiny_config(head_dim=16, num_key_value_heads=1)
    model = tiny.tiny_model(config)
    rng = np.random.default_rng(8)
    shape = (config.num_layers, 2, config.num_kv_heads, 256, config.head_dim)
    cache = FullCache(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))
    mask = np.tril(np.ones((3, 3), bool))
    mask[2, 1] = False
    tokens, lengths = jnp.asarray(rng.integers(0, 64, (2, 3)), jnp.int32), jnp.asarray([200, 77], jnp.int32)

    @jax.jit
    def forward(params, cache):
        positions = lengths[:, None] + jnp.asarray([[0, 1, 1]], jnp.int32)
        masks = jnp.broadcast_to(jnp.asarray(mask), (2, 3, 3))
        seen = RowBatch(tokens, positions, lengths, TreeMask(masks))
        rows, cache = forward_rows(nnx.merge(model.graphdef, params), seen, cache)
        return rows.hidden, cache.keys

    expected = forward(model.params, cache)
    with compiling_for(name, interpret=True, gpu=SMALL):
        actual = forward(model.params, cache)
    for one, other in zip(actual, expected, strict=True):
        # float32 sums in another order, through two layers of numbers around 1
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def abstract(shape, batch=1, quantised=False, stored=False):
    """Shapes of a call's arguments at a capacity of 131,072."""
    cache = (2, batch, shape.kv_heads, 131072, shape.head_dim)
    own = (batch, shape.rows, shape.kv_heads, shape.head_dim)
    given = {
        "queries": ((batch, shape.rows, shape.kv_heads * shape.group, shape.head_dim), shape.dtype),
        "keys": (cache, "int8" if quantised else shape.dtype),
        "values": (cache, "int8" if quantised else shape.dtype),
        "own_keys": (own, shape.dtype),
        "own_values": (own, shape.dtype),
        "lengths": ((batch,), "int32"),
        "tree_mask": ((batch, shape.rows, shape.rows), "bool"),
        "positions": ((batch, shape.rows), "int32"),
    }
    if quantised:
        given |= {"key_scales": (cache[:4], "float32"), "value_scales": (cache[:4], "float32")}
    arrays = {name: jax.ShapeDtypeStruct(s, jnp.dtype(dtype)) for name, (s, dtype) in given.items()}
    return arrays | {"key_positions": jax.ShapeDtypeStruct(cache[:4], jnp.int32) if stored else None}


@each_kernel
@pytest.mark.parametrize(
    ("shape", "options", "window"),
    [
        (Shape(4, 1, 128, 8, dtype="bfloat16"), {}, None),
        (Shape(4, 64, 128, 8, dtype="bfloat16"), {}, None),
        (Shape(6, 16, 128, 2, dtype="bfloat16"), {"batch": 4}, None),
        (Shape(4, 16, 64, 8, dtype="bfloat16"), {"quantised": True}, None),
        (Shape(1, 16, 80, 32, dtype="bfloat16"), {}, 4096),
        (Shape(4, 512, 96, 8, dtype="bfloat16"), {}, None),
        (Shape(2, 3, 128, 2, dtype="float32"), {"stored": True}, 512),
    ],
    ids=str,
)
def test_lowering(name, shape, options, window, monkeypatch):
    """At the sizes of real models, as far as it goes without the device's own compiler."""
    monkeypatch.undo()

    def program(arguments):
        return tree_attention(**arguments, layer=jnp.int32(1), window=window)

    assert calls_a_kernel(name, program, abstract(shape, **options))


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "message"),
    [
        ("tpu", "float16", 64, "queries are float16; the TPU kernel takes bfloat16 and float32"),
        ("tpu", "bfloat16", 20, "head_dim is 20; the TPU kernel takes multiples of 8"),
        ("gpu", "bfloat16", 24, "head_dim is 24; the GPU kernel takes multiples of 16 up to 256"),
        ("gpu", "float8_e4m3fn", 64, "queries are float8_e4m3fn; the GPU kernel takes bfloat16, float16 and float32"),
    ],
)
def test_limits(name, dtype, head_dim, message):
    arguments = abstract(Shape(2, 3, head_dim, dtype=dtype))
    with compiling_for(name), pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(traced, arguments)


def test_offsets_that_would_wrap_on_gpu():
    """One-byte numbers between 2 and 4 GiB."""
    arguments = abstract(Shape(4, 1, 128, 9, dtype="bfloat16"), batch=10, quantised=True)
    with compiling_for("gpu"), pytest.raises(ValueError, match="up to 2\\^31 or above 2\\^32"):
        jax.eval_shape(traced, arguments)


def test_head_pieces():
    assert [head_pieces(dim) for dim in (64, 80, 96, 112, 256)] == [
        ((0, 64),),
        ((0, 64), (64, 16)),
        ((0, 64), (64, 32)),
        ((0, 64), (64, 32), (96, 16)),
        ((0, 256),),
    ]


def test_splits():
    """As many programs as are wanted at most, one at least, none without a block."""
    assert [splits_for(programs, 264, 2048) for programs in (8, 100, 264, 1000)] == [33, 2, 1, 1]
    assert splits_for(8, 264, 5) == 5
