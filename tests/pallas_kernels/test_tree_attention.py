"""Tree attention against dense softmax attention in NumPy float64; slots that the kernel must not read hold NaN."""

from functools import partial

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import LAYER, LAYERS, Shape, dense, log_sum_exp, make, quantised

from pallas_kernels.tree_attention import tree_attention

# Around every length at which an implementation in blocks could end one.
EDGES = sorted({0, 1, 2} | {block * times + by for block in (128, 2048) for times in (1, 2, 4, 8) for by in (-1, 0, 1)})
EDGES = [length for length in EDGES if length <= 4097]


@partial(jax.jit, static_argnames="window")
def run(arguments, window=None):
    return tree_attention(**arguments, layer=LAYER, window=window)


@partial(jax.jit, static_argnames="window")
def run_with_lse(arguments, window=None):
    return tree_attention(**arguments, layer=LAYER, window=window, return_lse=True)


check = partial(attention_cases.check, run)


def test_every_length_around_a_block_edge():
    """Each beside another one in a batch; a key too many or too few weighs 1/4096 at least, 100 times the bound."""
    rng = np.random.default_rng(0)
    for length, other in zip(EDGES, reversed(EDGES), strict=True):
        check(make(rng, Shape(kv_heads=1), [length, other]))


@pytest.mark.parametrize(
    "shape",
    [
        Shape(group=1, rows=1, head_dim=64, capacity=768),
        Shape(group=4, rows=1, head_dim=80, capacity=2304),
        Shape(group=4, rows=40, head_dim=64, kv_heads=1, capacity=1280),
        Shape(group=7, rows=3, head_dim=80, capacity=768),
        Shape(group=8, rows=13, head_dim=16, capacity=256),
        Shape(group=1, rows=24, head_dim=16, kv_heads=3, capacity=2304),
    ],
    ids=str,
)
def test_groups_rows_and_head_sizes(shape):
    """Also a cache without a free slot, one that is empty, and batches of one."""
    rng = np.random.default_rng(1)
    check(make(rng, shape, [shape.capacity, 0, shape.capacity // 2 + 3]))
    check(make(rng, shape, [7]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes(dtype):
    rng = np.random.default_rng(2)
    for head_dim in (64, 80):
        check(make(rng, Shape(group=4, rows=9, head_dim=head_dim, capacity=2560, dtype=dtype), [2431, 0, 130]))


def test_float64():
    with jax.enable_x64(True):
        check(make(np.random.default_rng(3), Shape(group=4, dtype="float64", capacity=2560), [2431, 0, 130]))


@pytest.mark.parametrize("window", [1, 4, 130, 2100, 9999])
def test_sliding_window_over_slots_in_text_order(window):
    rng = np.random.default_rng(4)
    for lengths in ([4097, 4090], [5, 4000], [0, 1]):
        check(make(rng, Shape(rows=7), lengths), window)


@pytest.mark.parametrize("window", [1, 40, 900])
def test_sliding_window_over_slots_in_any_order(window):
    """Positions per layer and head as a draft cache has them; those of scratch slots mean nothing."""
    rng = np.random.default_rng(5)
    shape, lengths = Shape(rows=4, capacity=768), [700, 33, 256]
    arguments = make(rng, shape, lengths)
    stored = rng.integers(-(2**30), 2**30, (LAYERS, 3, shape.kv_heads, shape.capacity))
    for row, length in enumerate(lengths):
        for head in range(shape.kv_heads):
            stored[LAYER, row, head, :length] = rng.permutation(1000)[:length]
    stored[LAYER, 1, 0, :5] = -(2**30)
    arguments |= {
        "key_positions": jnp.asarray(stored, jnp.int32),
        "positions": arguments["positions"] - arguments["lengths"][:, None] + 1000,
    }
    check(arguments, window)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_numbers_with_scales(dtype):
    rng = np.random.default_rng(7)
    for queries in ("float32", "bfloat16"):
        shape = Shape(group=4, rows=3, capacity=1408, dtype=queries)
        check(quantised(rng, make(rng, shape, [1100, 0, 130]), dtype))


def test_scores_of_any_size_do_not_overflow():
    """Softmax takes the largest score off first: one key wins outright, and its value comes out as it is."""
    rng = np.random.default_rng(6)
    arguments = make(rng, Shape(rows=2), [3000])
    arguments["queries"] *= 1e4
    mixed, _ = dense(arguments)
    # Scores of 1e4 are rounded to about 1e-3, so two within a few of those could swap: a seed without such a pair.
    np.testing.assert_allclose(run(arguments), mixed, rtol=0, atol=1e-3)


@pytest.mark.parametrize("window", [None, 700])
def test_log_sum_exp(window):
    """The log-sum-exp is that of the scores a row sees, and the first output stays the same."""
    arguments = make(np.random.default_rng(8), Shape(group=3, rows=4, capacity=2304), [1500, 0, 300])
    mixed, lse = run_with_lse(arguments, window)
    np.testing.assert_array_equal(mixed, tree_attention(**arguments, layer=LAYER, window=window))
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, log_sum_exp(arguments, window), rtol=0, atol=1e-5)
    attention_cases.check_without_own_rows(run_with_lse, arguments, window)
