"""Kernels on this machine's device against their definitions in float64 on its CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.cache_scores import top_positions
from pallas_kernels.implementation import compiling_for
from pallas_kernels.prefill_attention import prefill_attention, served_by
from pallas_kernels.sparse_attention import sparse_attention
from pallas_kernels.tree_attention import tree_attention

LAYERS, LAYER = 2, 1
HEADS, CAPACITY, BLOCK, BEST = 2, 4608, 64, 300
LENGTHS = (4097, 130)
CHUNK = 128  # rows of a prompt
SHAPES = ((4, 128), (7, 64))  # group, head_dim
# Half an eps of the weights and of the result in narrow types; in float32 sums of thousands of products.
_BOUNDS = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-5}
_SCORE_BOUND = 1e-5  # of the scores' spread: their products are exact in float32, their sums are not


def check_kernels(dtype: Any) -> Iterator[dict[str, Any]]:
    """How far each kernel is off, for shapes that steps have; slots that a kernel must not read hold NaN
    (past a chunk's rows, which prefill multiplies by zero, large numbers).

    The attentions' `relative_error` is that of the whole result; that of the selection is how much worse than the
    best there were the chosen keys' scores are, over the scores' spread.
    """
    tree = partial(tree_attention, layer=LAYER, window=None, key_positions=None)
    sparse = partial(sparse_attention, layer=LAYER, window=None, block_size=BLOCK)
    for rows, (group, head_dim) in itertools.product((1, 16, 64), SHAPES):
        rng = np.random.default_rng(rows + group + head_dim)
        case = _case(rng, rows, group, head_dim)
        yield _row("tree_attention", rows, group, head_dim, dtype, _attention_error(tree, case, dtype))
        case = _in_blocks(rng, case)
        yield _row("sparse_attention", rows, group, head_dim, dtype, _attention_error(sparse, case, dtype))
    prefill = partial(prefill_attention, layer=LAYER, window=None, key_positions=None)
    for group, head_dim in SHAPES:
        case = _in_the_cache(_case(np.random.default_rng(group), CHUNK, group, head_dim))
        given = _given(case, dtype)
        row = _row("prefill_attention", CHUNK, group, head_dim, dtype, _attention_error(prefill, case, dtype))
        yield row | {"by": served_by(given["queries"], given["keys"])[0]}
    for group, head_dim in SHAPES:
        error = _selection_error(_case(np.random.default_rng(group), 1, group, head_dim), dtype)
        yield _row("cache_scores", 1, group, head_dim, dtype, error) | {"good": error <= _SCORE_BOUND}


def _row(kernel: str, rows: int, group: int, head_dim: int, dtype: Any, error: float) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "rows": rows,
        "group": group,
        "head_dim": head_dim,
        "dtype": str(dtype),
        "relative_error": error,
        "good": bool(error <= _BOUNDS[str(dtype)]),
    }


def _attention_error(attend: Callable[..., jax.Array], case: dict[str, np.ndarray], dtype: Any) -> float:
    given = _given(case, dtype)
    with jax.default_matmul_precision("highest"):
        actual = _float64(jax.jit(lambda a: attend(**a))(given))
        rounded = {name: _float64(a) for name, a in given.items() if a.dtype == dtype}
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), compiling_for("reference"):
            wide = {name: jnp.asarray(rounded.get(name, a)) for name, a in case.items()}
            expected = np.asarray(jax.jit(lambda a: attend(**a))(wide))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _selection_error(case: dict[str, np.ndarray], dtype: Any) -> float:
    given = _given(case, dtype)
    query, keys, lengths = given["queries"][:, 0], given["keys"], given["lengths"]
    # A query that narrow types hold exactly, with its sum over the group, leaves the sums' rounding alone.
    query = jnp.round(query * 4).astype(dtype)
    select = jax.jit(partial(top_positions, layer=LAYER, count=BEST))
    with jax.default_matmul_precision("highest"):
        chosen = np.asarray(select(query, keys, begins=jnp.zeros_like(lengths), ends=lengths))
    summed = _float64(query).reshape(len(LENGTHS), HEADS, -1, query.shape[-1]).sum(axis=2)
    worst = 0.0
    for text, length in enumerate(LENGTHS):
        scores = np.einsum("hd,hcd->hc", summed[text], _float64(keys[LAYER, text, :, :length]))
        count = min(BEST, length)
        for head in range(HEADS):
            picked = chosen[text, head, :count]
            if len(set(picked.tolist())) < count or picked.min() < 0 or (chosen[text, head, count:] != -1).any():
                return float("inf")
            lost = np.sort(scores[head])[::-1][:count] - np.sort(scores[head, picked])[::-1]
            worst = max(worst, float(lost.max() / scores[head].std()))
    return worst


def _given(case: dict[str, np.ndarray], dtype: Any) -> dict[str, jax.Array]:
    return {name: jnp.asarray(a, dtype if a.dtype == np.float64 else a.dtype) for name, a in case.items()}


def _float64(a: jax.Array) -> np.ndarray:
    return np.asarray(a.astype(jnp.float32), np.float64)


def _case(rng: np.random.Generator, rows: int, group: int, head_dim: int) -> dict[str, np.ndarray]:
    batch = len(LENGTHS)
    cache = np.full((2, LAYERS, batch, HEADS, CAPACITY, head_dim), np.nan)
    for row, length in enumerate(LENGTHS):
        cache[:, LAYER, row, :, :length] = rng.normal(size=(2, HEADS, length, head_dim))
    mask = np.eye(rows, dtype=bool)
    for row in range(1, rows):
        mask[row] |= mask[rng.integers(row)]
    depths = mask.sum(axis=1) - 1
    return {
        "queries": rng.normal(size=(batch, rows, HEADS * group, head_dim)),
        "keys": cache[0],
        "values": cache[1],
        "own_keys": rng.normal(size=(batch, rows, HEADS, head_dim)),
        "own_values": rng.normal(size=(batch, rows, HEADS, head_dim)),
        "lengths": np.asarray(LENGTHS, np.int32),
        "tree_mask": np.broadcast_to(mask, (batch, rows, rows)),
        "positions": (np.asarray(LENGTHS)[:, None] + depths[None]).astype(np.int32),
    }


def _in_the_cache(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The case of rows that follow each other, and are in the cache as well; the slots after them are finite."""
    rows = case["queries"].shape[1]
    changed = {name: case[name].copy() for name in ("keys", "values")}
    for name, stack in changed.items():
        for text, length in enumerate(LENGTHS):
            stack[LAYER, text, :, length : length + rows] = case[f"own_{name}"][text].swapaxes(0, 1)
            stack[LAYER, text, :, length + rows :] = 1e3
    positions = np.asarray(LENGTHS)[:, None] + np.arange(rows)
    rest = {name: array for name, array in case.items() if name != "tree_mask"}
    return rest | changed | {"positions": positions.astype(np.int32)}


def _in_blocks(rng: np.random.Generator, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The case with a table that names half of each text's blocks in any order; the others hold NaN too."""
    table = CAPACITY // BLOCK // 2 + 1
    blocks = np.full((len(LENGTHS), HEADS, table), -1, np.int32)
    case = case | {"keys": case["keys"].copy(), "values": case["values"].copy()}
    for text, head in itertools.product(range(len(LENGTHS)), range(HEADS)):
        order = rng.permutation(-(-LENGTHS[text] // BLOCK)).astype(np.int32)
        named = order[: -(-len(order) // 2)]
        blocks[text, head, : len(named)] = named
        for block in set(order) - set(named):
            for stack in ("keys", "values"):
                case[stack][:, text, head, block * BLOCK : (block + 1) * BLOCK] = np.nan
    return case | {"blocks": blocks}
