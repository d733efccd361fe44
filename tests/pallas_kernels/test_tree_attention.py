"""Tree attention against dense softmax attention in NumPy float64; whatever must not be read holds NaN."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.tree_attention import tree_attention

LAYERS, LAYER = 3, 1
# Around every length at which an implementation in blocks could end one.
EDGES = sorted({0, 1, 2} | {block * times + by for block in (128, 2048) for times in (1, 2, 4, 8) for by in (-1, 0, 1)})
EDGES = [length for length in EDGES if length <= 4097]


@dataclass(frozen=True)
class Shape:
    group: int = 2
    rows: int = 5
    head_dim: int = 16
    kv_heads: int = 2
    capacity: int = 4352
    dtype: str = "float32"


def ancestor_mask(rng, rows):
    """bool [rows, rows] of a random tree: row 0 the root, every other row below an earlier one."""
    mask = np.eye(rows, dtype=bool)
    for row in range(1, rows):
        mask[row] |= mask[rng.integers(row)]
    return mask


def make(rng, shape, lengths):
    """Arguments by name: NaN past each length and in every other layer."""
    batch, heads = len(lengths), shape.kv_heads * shape.group
    cache = np.full((2, LAYERS, batch, shape.kv_heads, shape.capacity, shape.head_dim), np.nan)
    for row, length in enumerate(lengths):
        cache[:, LAYER, row, :, :length] = rng.normal(size=(2, shape.kv_heads, length, shape.head_dim))
    masks = [ancestor_mask(rng, shape.rows) for _ in lengths]
    drawn = {
        "queries": rng.normal(size=(batch, shape.rows, heads, shape.head_dim)),
        "keys": cache[0],
        "values": cache[1],
        "own_keys": rng.normal(size=(batch, shape.rows, shape.kv_heads, shape.head_dim)),
        "own_values": rng.normal(size=(batch, shape.rows, shape.kv_heads, shape.head_dim)),
    }
    lengths = np.asarray(lengths, np.int32)
    depths = np.asarray([mask.sum(axis=1) - 1 for mask in masks], np.int32)
    return {name: jnp.asarray(array, shape.dtype) for name, array in drawn.items()} | {
        "lengths": jnp.asarray(lengths),
        "tree_mask": jnp.asarray(np.stack(masks)),
        "positions": jnp.asarray(lengths[:, None] + depths),
        "key_positions": None,
    }


def widened(values):
    """Float64, exactly."""
    return np.asarray(values).astype(np.float64)


def dense(arguments, window=None):
    """The mixed values, and the same with |v| for v, which bounds how far rounding can move them."""
    wide = {k: None if v is None else np.asarray(v) for k, v in arguments.items()}
    floats = ("queries", "keys", "values", "own_keys", "own_values")
    wide |= {name: widened(arguments[name]) for name in floats}
    queries, positions = wide["queries"], wide["positions"]
    batch, rows, heads, dim = queries.shape
    group = heads // wide["keys"].shape[2]
    mixed, magnitude = np.zeros_like(queries), np.zeros_like(queries)
    for b in range(batch):
        length = wide["lengths"][b]
        for head in range(heads):
            kv = head // group
            keys = np.concatenate([wide["keys"][LAYER, b, kv, :length], wide["own_keys"][b, :, kv]])
            values = np.concatenate([wide["values"][LAYER, b, kv, :length], wide["own_values"][b, :, kv]])
            seen = np.concatenate([np.ones((rows, length), bool), wide["tree_mask"][b]], axis=1)
            if window is not None:
                where = np.arange(length)
                if wide["key_positions"] is not None:
                    where = wide["key_positions"][LAYER, b, kv, :length]
                where = np.concatenate([where, positions[b]])
                seen &= where[None] > positions[b][:, None] - window
            scores = np.where(seen, queries[b, :, head] @ keys.T / np.sqrt(dim), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            mixed[b, :, head], magnitude[b, :, head] = weights @ values, weights @ abs(values)
    return mixed, magnitude


@partial(jax.jit, static_argnames="window")
def run(arguments, window=None):
    return tree_attention(**arguments, layer=LAYER, window=window)


def check(arguments, window=None):
    actual = run(arguments, window)
    assert actual.dtype == arguments["queries"].dtype
    assert actual.shape == arguments["queries"].shape
    mixed, magnitude = dense(arguments, window)
    # Narrow dtypes round the weights and the result, half an eps each: twice that. Wide ones round sums: scores up to
    # about 6 of some ten products each, a few eps apiece.
    eps = float(jnp.finfo(actual.dtype).eps)
    bound = magnitude * eps * (2 if eps > 1e-6 else 64)
    difference = abs(widened(actual) - mixed)
    assert np.all(difference <= bound), (difference / bound).max()


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
    held = rng.integers(-(2**30), 2**30, (LAYERS, 3, shape.kv_heads, shape.capacity))
    for row, length in enumerate(lengths):
        for head in range(shape.kv_heads):
            held[LAYER, row, head, :length] = rng.permutation(1000)[:length]
    held[LAYER, 1, 0, :5] = -(2**30)
    arguments |= {
        "key_positions": jnp.asarray(held, jnp.int32),
        "positions": arguments["positions"] - arguments["lengths"][:, None] + 1000,
    }
    check(arguments, window)


def test_scores_of_any_size_do_not_overflow():
    """Softmax takes the largest score off first: one key wins outright, and its value comes out as it is."""
    rng = np.random.default_rng(6)
    arguments = make(rng, Shape(rows=2), [3000])
    arguments["queries"] *= 1e4
    mixed, _ = dense(arguments)
    # Scores of 1e4 are rounded to about 1e-3, so two within a few of those could swap: a seed without such a pair.
    np.testing.assert_allclose(run(arguments), mixed, rtol=0, atol=1e-3)
