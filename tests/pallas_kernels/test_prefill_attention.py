"""tokamax' kernels over the stacked cache, interpreted, against dense attention in NumPy float64; lowered for both."""

import logging
from functools import partial

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import LAYER, LAYERS, Shape, make
from jax.experimental import pallas as pl
from lowering import lowered
from tokamax._src.pallas import block

from pallas_kernels import implementation
from pallas_kernels.gpus import A100, H200, Gpu
from pallas_kernels.implementation import compiling_for
from pallas_kernels.prefill_attention import LANES, prefill_attention, served_by, tpu
from pallas_kernels.prefill_attention.flat_cache_view import flat_cache_view, kv_ranges, layer_begins
from pallas_kernels.prefill_attention.reference import causal_mask
from tests import tiny
from tokenswift_jax.kv import dense
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.step.loop import causal_chunk

WIDE = 1e4  # of what lies past the rows' own: a weight of 1e-5 would show


def chunk(rng, lengths, *, rows=128, dtype="bfloat16", head_dim=128, **shape):
    """Arguments of prefill: the rows' own keys and values also in the cache, then numbers that are large but finite;
    other layers hold NaN."""
    arguments = make(rng, Shape(rows=rows, dtype=dtype, head_dim=head_dim, **shape), lengths)
    caches = {name: np.array(arguments[name], np.float32) for name in ("keys", "values")}
    for name, cache in caches.items():
        for row, length in enumerate(lengths):
            own = np.asarray(arguments[f"own_{name}"][row], np.float32)
            cache[LAYER, row, :, length : length + rows] = own.swapaxes(0, 1)
            cache[LAYER, row, :, length + rows :] = WIDE
    changed = {name: jnp.asarray(cache, dtype) for name, cache in caches.items()}
    changed["positions"] = arguments["lengths"][:, None] + jnp.arange(rows, dtype=jnp.int32)[None, :]
    changed["tree_mask"] = causal_mask(len(lengths), rows)
    return arguments | changed


@partial(jax.jit, static_argnames="window")
def traced(arguments, window=None):
    options = {name: array for name, array in arguments.items() if name != "tree_mask"}
    return prefill_attention(**options, layer=LAYER, window=window)


@pytest.fixture
def run(request, monkeypatch):
    """A function of (arguments, window) that runs the library's kernel for "tpu" or "gpu" in an interpreter."""
    reported = []
    monkeypatch.setattr(implementation, "_logged", set())
    monkeypatch.setattr(implementation._log, "info", reported.append)

    def run(arguments, window=None):
        jax.clear_caches()  # what is traced here asks an interpreter for it
        if request.param == "tpu":
            with compiling_for("tpu", interpret=True):
                result = traced(arguments, window)
        else:
            # Triton's, which takes what Mosaic GPU's takes, and which Pallas interprets.
            with monkeypatch.context() as patched, compiling_for("gpu", gpu=A100):
                patched.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))
                # The interpreter knows no program's number inside a loop, where tokamax asks for it to mask what lies
                # past an array's end: nothing here.
                patched.setattr(block, "_pids", lambda: (jnp.int32(0), jnp.int32(0)))
                result = traced(arguments, window)
        assert reported == [f"prefill_attention: {request.param}, tokamax"]
        return result

    return run


each_kernel = pytest.mark.parametrize("run", ["tpu", "gpu"], indirect=True)


@each_kernel
@pytest.mark.parametrize("lengths", [[0, 1], [127, 128], [895, 896], [1024, 1023], [1025, 1151]], ids=str)
def test_lengths_around_the_edges_of_blocks(run, lengths):
    """Unequal lengths in one batch; the cache is full at 1,152 + 128."""
    attention_cases.check(run, chunk(np.random.default_rng(0), lengths, capacity=1280))


@each_kernel
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 3), (4, 2), (7, 1), (8, 1)])
def test_groups(run, group, kv_heads):
    attention_cases.check(run, chunk(np.random.default_rng(1), [700], group=group, kv_heads=kv_heads, capacity=1024))


@each_kernel
@pytest.mark.parametrize("window", [1, 100, 700])
def test_windows(run, window):
    """Inside the rows' own, into the block before, and past several."""
    arguments = chunk(np.random.default_rng(2), [1300, 40], capacity=1536)
    attention_cases.check(run, arguments, window)


@each_kernel
def test_several_tiles_of_rows(run):
    attention_cases.check(run, chunk(np.random.default_rng(3), [900], rows=384, capacity=1536))


@pytest.mark.parametrize("run", ["gpu"], indirect=True)
@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_head_sizes_on_gpu(run, head_dim):
    attention_cases.check(run, chunk(np.random.default_rng(4), [300], head_dim=head_dim, capacity=512))


@pytest.mark.parametrize(
    ("name", "gpu", "options", "why"),
    [
        ("tpu", None, {"rows": 32}, "32 rows"),
        ("gpu", H200, {"rows": 32}, "32 rows"),
        ("tpu", None, {"head_dim": 64}, "head_dim 64"),
        ("gpu", A100, {"head_dim": 80}, "head_dim 80"),
        ("gpu", A100, {"head_dim": 256}, "head_dim 256"),
        ("gpu", Gpu((12, 0), 100), {}, "compute capability 12.0"),
        ("gpu", H200, {"capacity": 320}, "capacity 320"),
        ("tpu", None, {"dtype": "float32"}, "float32 rows over float32"),
        ("gpu", H200, {"dtype": "float32"}, "float32 rows over float32"),
    ],
)
def test_what_the_library_does_not_take_goes_to_tree_attention(name, gpu, options, why, caplog, monkeypatch):
    monkeypatch.setattr(implementation, "_logged", set())
    arguments = chunk(np.random.default_rng(5), [100], **{"capacity": 256} | options)
    with caplog.at_level(logging.INFO, "pallas_kernels"), compiling_for(name, gpu=gpu):
        jax.eval_shape(traced, arguments)
    assert f"prefill_attention: tree_attention ({why})" in caplog.messages


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_a_cache_whose_slots_int32_cannot_number_goes_to_tree_attention(name):
    """The library's kernels would be told negative slots."""
    queries = jax.ShapeDtypeStruct((1, 128, 32, 128), jnp.bfloat16)
    with compiling_for(name, gpu=H200):
        for layers, by in ((63, f"{name}, tokamax"), (64, "tree_attention (more than 2^31 slots in all layers)")):
            keys = jax.ShapeDtypeStruct((layers, 4, 8, 2**20, 128), jnp.bfloat16)
            assert served_by(queries, keys)[0] == by


def test_no_core_of_a_chip_is_left_idle(monkeypatch):
    """Splash attention's grid splits the query group among them."""
    monkeypatch.setattr(tpu, "several_cores", lambda: True)
    with compiling_for("tpu"):
        for group, by in (
            (1, "tree_attention (one query head a KV head would leave a core idle)"),
            (2, "tpu, tokamax"),
        ):
            arguments = chunk(np.random.default_rng(5), [100], capacity=256, group=group)
            assert served_by(arguments["queries"], arguments["keys"])[0] == by


def test_the_reference_is_dense_attention():
    attention_cases.check(traced, chunk(np.random.default_rng(6), [200, 0], capacity=512, dtype="float32"))


def test_spans_name_the_slots_of_one_layer_and_head():
    """Numbers count the slots of all layers, sequences and heads: what a span names is a row's own and those before."""
    stack = jnp.arange(LAYERS * 2 * 3 * 8, dtype=jnp.float32).reshape(LAYERS, 2, 3, 8, 1)
    flat = np.asarray(flat_cache_view(stack))[:, 0]
    begins, ends = (
        layer_begins(stack, LAYER) + np.asarray(span)
        for span in kv_ranges(stack, jnp.asarray([4, 1], jnp.int32), 3, window=2)
    )
    for row, length in enumerate((4, 1)):
        for head in range(3):
            for index in range(3):
                seen = stack[LAYER, row, head, max(length + index - 1, 0) : length + index + 1, 0]
                np.testing.assert_array_equal(
                    flat[begins[row, head, index] : ends[row, head, index]], seen, err_msg=f"{row} {head} {index}"
                )


@pytest.mark.parametrize(
    ("name", "gpu", "call", "options"),
    [
        ("tpu", None, "tpu_custom_call", {}),
        ("gpu", A100, "__gpu$xla.gpu.triton", {}),
        ("gpu", H200, "mosaic_gpu", {}),
        ("gpu", H200, "mosaic_gpu", {"head_dim": 80, "dtype": "float16"}),
        ("gpu", H200, "mosaic_gpu", {"head_dim": 256}),
        ("tpu", None, "tpu_custom_call", {"head_dim": 256}),
    ],
)
def test_lowers_for_accelerators(name, gpu, call, options):
    arguments = chunk(np.random.default_rng(7), [100], capacity=1024, **options)
    assert call in lowered(name, traced, arguments, gpu=gpu)


def test_chunks_of_a_prompt_run_on_it(monkeypatch):
    """A prompt of two chunks fills the cache as the reference does: in bfloat16 to its rounding, layer after layer."""
    config = tiny.tiny_config(head_dim=LANES)
    model = tiny.tiny_model(config, jnp.bfloat16)
    text = jnp.asarray(np.random.default_rng(8).integers(0, config.vocab_size, (1, 2 * LANES)), jnp.int32)
    chunks, calls = 2 * [0], []

    def filled():
        cache = empty_cache(config, 1, 512, jnp.dtype(jnp.bfloat16))
        for start in (0, LANES):
            piece = text[:, start : start + LANES]
            calls.clear()
            hidden, cache = causal_chunk(model.graphdef, model.params, piece, jnp.int32(start), cache)
            chunks[start // LANES] = len(calls)
        return np.asarray(hidden, np.float64), np.asarray(cache.values[-1, :, :, : 2 * LANES], np.float64)

    expected = filled()
    with compiling_for("tpu", interpret=True), monkeypatch.context() as patched:
        patched.setattr(dense, "prefill_attention", lambda **a: calls.append(None) or prefill_attention(**a))
        actual = filled()
    assert min(chunks) > 0, f"calls of the kernel while JAX traces a chunk, by chunk: {chunks}"
    for a, e in zip(actual, expected, strict=True):
        # An eps of bfloat16, 2^-7, for each of the few roundings a layer; a key too few moves rows by a tenth.
        assert np.linalg.norm(a - e) <= 2**-6 * np.linalg.norm(e)
        assert np.linalg.norm(a - e) > 0  # another order of sums: not the same program
