"""Calls of sparse attention whose every unnamed or unused slot holds NaN, and their answers in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.sparse_attention import sparse_attention

LAYERS, LAYER = 2, 1


@dataclass(frozen=True)
class Shape:
    group: int = 2
    rows: int = 5
    head_dim: int = 128
    kv_heads: int = 2
    capacity: int = 1024
    table: int = 9
    block: int = 32
    dtype: str = "float32"
    cache_dtype: str | None = None  # None: dtype
    window: int | None = None


def ancestor_mask(rng, rows):
    """bool [rows, rows] of a random tree: row 0 the root, every other row below an earlier one."""
    mask = np.eye(rows, dtype=bool)
    for row in range(1, rows):
        mask[row] |= mask[rng.integers(row)]
    return mask


def make(rng, shape, lengths):
    """Arguments by name: NaN (127 in int8) in every slot that is not named, not in use or of another layer.

    Tables name blocks in any order, with entries that name none between them, blocks past the length among them, and
    the one that holds the newest slot. Scales of int8 and float8 are given, NaN likewise where nothing may be read.
    """
    batch, heads, total = len(lengths), shape.kv_heads * shape.group, shape.capacity // shape.block
    cache_dtype = jnp.dtype(shape.cache_dtype or shape.dtype)
    blocks = np.full((batch, shape.kv_heads, shape.table), -1, np.int32)
    named = np.zeros((batch, shape.kv_heads, shape.capacity), bool)
    for row, length in enumerate(lengths):
        used = -(-length // shape.block)
        for head in range(shape.kv_heads):
            wanted = rng.permutation(min(used + 1, total))[: shape.table - 1]
            if used and used - 1 not in wanted:
                wanted[0] = used - 1
            places = rng.permutation(shape.table)[: len(wanted)]
            blocks[row, head, places] = wanted
            slots = (wanted[:, None] * shape.block + np.arange(shape.block)).ravel()
            named[row, head, slots[slots < length]] = True
    whole = cache_dtype == jnp.int8
    cache = np.full((2, LAYERS, *named.shape, shape.head_dim), 127 if whole else np.nan, np.float32)
    drawn = rng.normal(size=(2, named.sum(), shape.head_dim))
    cache[:, LAYER, named] = np.round(drawn * 30) if whole else drawn
    scales = [None, None]
    if cache_dtype.itemsize == 1:
        scales = np.full((2, LAYERS, *named.shape), np.nan, np.float32)
        scales[:, LAYER, named] = rng.uniform(0.5, 1.5, size=(2, named.sum())) / (30 if whole else 1)
        scales = [jnp.asarray(x) for x in scales]
    masks = [ancestor_mask(rng, shape.rows) for _ in lengths]
    lengths = np.asarray(lengths, np.int32)
    depths = np.asarray([mask.sum(axis=1) - 1 for mask in masks], np.int32)

    def numbers(*dims):
        return jnp.asarray(rng.normal(size=dims), shape.dtype)

    return {
        "queries": numbers(batch, shape.rows, heads, shape.head_dim),
        "keys": jnp.asarray(cache[0]).astype(cache_dtype),
        "values": jnp.asarray(cache[1]).astype(cache_dtype),
        "own_keys": numbers(batch, shape.rows, shape.kv_heads, shape.head_dim),
        "own_values": numbers(batch, shape.rows, shape.kv_heads, shape.head_dim),
        "blocks": jnp.asarray(blocks),
        "lengths": jnp.asarray(lengths),
        "tree_mask": jnp.asarray(np.stack(masks)),
        "positions": jnp.asarray(lengths[:, None] + depths),
        "key_scales": scales[0],
        "value_scales": scales[1],
    }


def without_own_rows(arguments):
    """The same call where no row sees any, as where another device attends over them."""
    return arguments | {"tree_mask": jnp.zeros_like(arguments["tree_mask"])}


def dense(arguments, shape):
    """The mixed values, the same with |v| for v, which bounds how far rounding can move them, and the logarithm of each
    softmax's denominator; a row that sees nothing has zeros and -inf."""
    wide = {k: None if v is None else np.asarray(v).astype(np.float64) for k, v in arguments.items()}
    blocks, positions = np.asarray(arguments["blocks"]), np.asarray(arguments["positions"])
    queries = wide["queries"]
    mixed, magnitude, lse = np.zeros_like(queries), np.zeros_like(queries), np.zeros(queries.shape[:3])
    for b in range(queries.shape[0]):
        for head in range(queries.shape[2]):
            kv = head // shape.group
            slots = (blocks[b, kv][:, None] * shape.block + np.arange(shape.block))[blocks[b, kv] >= 0].ravel()
            slots = slots[slots < int(arguments["lengths"][b])]
            keys, values = (wide[name][LAYER, b, kv, slots] for name in ("keys", "values"))
            if wide["key_scales"] is not None:
                keys = keys * wide["key_scales"][LAYER, b, kv, slots, None]
                values = values * wide["value_scales"][LAYER, b, kv, slots, None]
            keys = np.concatenate([keys, wide["own_keys"][b, :, kv]])
            values = np.concatenate([values, wide["own_values"][b, :, kv]])
            seen = np.concatenate(
                [np.ones((shape.rows, len(slots)), bool), np.asarray(arguments["tree_mask"][b])], axis=1
            )
            if shape.window is not None:
                where = np.concatenate([slots, positions[b]])
                seen &= where[None] > positions[b][:, None] - shape.window
            scores = np.where(seen, queries[b, :, head] @ keys.T / np.sqrt(shape.head_dim), -np.inf)
            lse[b, :, head] = np.logaddexp.reduce(scores, axis=1)
            weights = np.exp(scores - np.where(np.isinf(lse[b, :, head]), 0, lse[b, :, head])[:, None])
            mixed[b, :, head], magnitude[b, :, head] = weights @ values, weights @ abs(values)
    return mixed, magnitude, lse


# LLVM's optimisation takes longer than these small programs run; it changes only the order of rounding.
@partial(jax.jit, static_argnames="shape", compiler_options={"xla_backend_optimization_level": 0})
def run(arguments, shape):
    given = {"layer": LAYER, "block_size": shape.block, "window": shape.window}
    return sparse_attention(**arguments, **given, return_lse=True)


def check(arguments, shape):
    """The call against the dense answer, within what rounding can explain."""
    actual, lse = run(arguments, shape)
    assert actual.dtype == arguments["queries"].dtype
    assert actual.shape == arguments["queries"].shape
    mixed, magnitude, expected = dense(arguments, shape)
    # Narrow dtypes round the weights, scaled values and the result, half an eps each: twice that. Wide ones round sums:
    # scores up to about 6 of some ten products each, a few eps apiece.
    eps = float(jnp.finfo(actual.dtype).eps)
    bound = magnitude * eps * (3 if eps > 1e-6 else 64)
    # Scores of about ten, to an eps of float32 each; the reference rounds a key and its scale to the queries' dtype.
    narrow = actual.dtype == jnp.bfloat16 and arguments["key_scales"] is not None
    np.testing.assert_allclose(lse, expected, rtol=0, atol=2e-2 if narrow else 2e-5)
    actual = np.where(np.isinf(expected)[..., None], 0, np.asarray(actual).astype(np.float64))
    difference = abs(actual - mixed)
    assert np.all(difference <= bound), (difference / bound).max()
