"""Arguments of tree attention with NaN wherever nothing may be read, and dense attention in NumPy float64."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

LAYERS, LAYER = 3, 1


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


def sequence(arguments, row):
    """The arguments of one sequence of the batch; what is stacked by layer has the batch second."""
    stacked = ("keys", "values", "key_positions", "key_scales", "value_scales")
    cut = slice(row, row + 1)
    return {name: None if x is None else (x[:, cut] if name in stacked else x[cut]) for name, x in arguments.items()}


def quantised(rng, arguments, dtype):
    """The same with a cache of small numbers and scales of another size in every slot; NaN where it was before."""
    lengths = np.asarray(arguments["lengths"])
    live = np.arange(arguments["keys"].shape[3]) < lengths[:, None, None]
    changed = {}
    for name in ("keys", "values"):
        wide = np.nan_to_num(widened(arguments[name]))
        steps = 60.0 if dtype == "int8" else 2.0
        # Integers hold no NaN: what must not be read is large, and its scale NaN.
        numbers = np.where(np.isnan(widened(arguments[name])), 100, np.clip(np.round(wide * steps), -127, 127))
        if dtype != "int8":
            numbers = np.where(np.isnan(widened(arguments[name])), np.nan, wide * steps)
        changed[name] = jnp.asarray(numbers, "float32").astype(dtype)
        scales = np.full(numbers.shape[:4], np.nan)
        scales[LAYER] = np.where(live, rng.uniform(0.5, 2, scales[LAYER].shape) / steps, np.nan)
        changed[name[:-1] + "_scales"] = jnp.asarray(scales, jnp.float32)
    return arguments | changed


def widened(values):
    """Float64, exactly."""
    return np.asarray(values).astype(np.float64)


def dense(arguments, window=None):
    """The mixed values, and the same with |v| for v, which bounds how far rounding can move them."""
    mixed = np.zeros(arguments["queries"].shape)
    magnitude = np.zeros_like(mixed)
    for b, head, scores, values in scored(arguments, window):
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed[b, :, head], magnitude[b, :, head] = weights @ values, weights @ abs(values)
    return mixed, magnitude


def log_sum_exp(arguments, window=None):
    """The logarithm of each softmax's denominator, [batch, rows, query_heads]."""
    lse = np.zeros(arguments["queries"].shape[:3])
    for b, head, scores, _ in scored(arguments, window):
        lse[b, :, head] = np.logaddexp.reduce(scores, axis=1)
    return lse


def scored(arguments, window):
    """Sequence, query head, float64 scores [rows, columns] (-inf: not seen) and values [columns, head_dim] in turn."""
    wide = {k: None if v is None else np.asarray(v) for k, v in arguments.items()}
    floats = ("queries", "keys", "values", "own_keys", "own_values")
    wide |= {name: widened(arguments[name]) for name in floats}
    for name, scales in (("keys", "key_scales"), ("values", "value_scales")):
        if wide.get(scales) is not None:
            wide[name] = wide[name] * wide[scales][..., None].astype(np.float64)
    queries, positions = wide["queries"], wide["positions"]
    batch, rows, heads, dim = queries.shape
    group = heads // wide["keys"].shape[2]
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
            yield b, head, scores, values


def check(run, arguments, window=None):
    """Compares run(arguments, window) with dense attention."""
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


def check_without_own_rows(run, arguments, window=None):
    """The result and the log-sum-exp of run(arguments, window) where no row sees any of the rows, as where another
    device attends over them."""
    arguments = arguments | {"tree_mask": jnp.zeros_like(arguments["tree_mask"])}
    mixed, lse = run(arguments, window)
    expected = log_sum_exp(arguments, window)
    np.testing.assert_allclose(lse, expected, rtol=0, atol=1e-5)
    with np.errstate(invalid="ignore"):
        whole, _ = dense(arguments, window)
    seen = np.isfinite(expected)
    assert 0 < seen.sum() < seen.size
    np.testing.assert_allclose(widened(mixed)[seen], whole[seen], rtol=0, atol=1e-5)
