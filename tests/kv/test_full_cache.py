"""The full cache: sizes, and what each of its methods does, against NumPy assignments and dense attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenswift_jax.arrays import take_row
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import BLOCK, cache_bytes, empty_cache, round_up, write_rows
from tokenswift_jax.kv.quantize import dequantize_kv, quantize_kv
from tokenswift_jax.kv.row_batch import Causal, RowBatch, TreeMask, TreeMaskOverBlocks
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.projected import Apart
from tokenswift_jax.models.rope import rotation

CONFIG = model_config(
    {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_an_empty_cache(dtype):
    cache = empty_cache(CONFIG, 2, 512, jnp.dtype(dtype))
    assert cache.capacity == 512
    assert cache.keys.shape == cache.values.shape == (3, 2, 2, 512, 6)
    assert cache_bytes(CONFIG, 2, 512, jnp.dtype(dtype)) == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize(("size", "block", "rounded"), [(0, 256, 0), (1, 256, 256), (256, 256, 256), (257, 256, 512)])
def test_round_up(size, block, rounded):
    assert round_up(size, block) == rounded


@pytest.mark.parametrize("x64", [False, True])
def test_rows_lie_at_each_row_s_own_start(x64):
    rng = np.random.default_rng(0)
    stack, rows = rng.normal(size=(3, 4, 2, 32, 6)), rng.normal(size=(2, 4, 2, 5, 6))
    starts = [0, 27, 9, 26]
    with jax.enable_x64(x64):
        actual = jax.jit(write_rows, static_argnums=2)(
            jnp.asarray(stack), jnp.asarray(rows), 1, jnp.asarray(starts, jnp.int32)
        )
        expected = np.array(jnp.asarray(stack))
        for row, start in enumerate(starts):
            expected[1:, row, :, start : start + 5] = rows[:, row]
        np.testing.assert_array_equal(actual, expected)


def test_rows_along_a_path():
    rows = np.random.default_rng(1).normal(size=(3, 2, 2, 7, 6)).astype(np.float32)
    path = np.asarray([[0, 3, 6, 6], [0, 1, 1, 1]], np.int32)
    actual = StoredKV(jnp.asarray(rows), jnp.asarray(rows)).along(jnp.asarray(path)).keys
    np.testing.assert_array_equal(actual, np.stack([rows[:, b][:, :, path[b]] for b in range(2)], axis=1))


@pytest.mark.parametrize("cache_dtype", ["int8", "float8_e4m3"])
def test_bytes_of_a_cache_in_eight_bits(cache_dtype):
    cache = empty_cache(CONFIG, 2, 512, jnp.dtype(jnp.bfloat16), cache_dtype)
    assert (cache.cache_dtype, cache.dtype) == (cache_dtype, jnp.bfloat16)
    whole = cache_bytes(CONFIG, 2, 512, jnp.dtype(jnp.bfloat16), cache_dtype)
    assert whole == sum(stack.nbytes for stack in jax.tree.leaves(cache.stacks))


@pytest.mark.parametrize(("dtype", "step"), [(jnp.int8, 0.5 / 127), (jnp.float8_e4m3fn, 2**-4)])
def test_rounding_to_eight_bits(dtype, step):
    """To half a step of the row's largest; float8 to half of its last of four bits, relative to each number."""
    rows = np.random.default_rng(2).normal(size=(2, 3, 64)).astype(np.float32)
    rows[0, 0] = 0
    numbers, scales = quantize_kv(jnp.asarray(rows), jnp.dtype(dtype))
    assert (numbers.dtype, scales.dtype, scales.shape) == (dtype, jnp.float32, (2, 3))
    again = np.asarray(dequantize_kv(numbers, scales, jnp.dtype(jnp.float32)))
    largest = abs(rows).max(axis=-1, keepdims=True)
    of = largest if dtype == jnp.int8 else np.maximum(abs(rows), largest * 2**-14)
    assert np.all(abs(again - rows) <= 1.0001 * step * of)
    np.testing.assert_array_equal(abs(again).argmax(axis=-1)[1:], abs(rows).argmax(axis=-1)[1:])


def test_a_row_that_is_not_finite_stays_so():
    rows = jnp.asarray([[1, jnp.nan], [jnp.inf, 2], [3, 4]], jnp.float32)
    again = np.asarray(dequantize_kv(*quantize_kv(rows, jnp.dtype(jnp.int8)), jnp.dtype(jnp.float32)))
    assert not np.isfinite(again[0]).any()
    assert not np.isfinite(again[1]).any()
    np.testing.assert_allclose(again[2], [3, 4], rtol=0, atol=4 / 254)


FORMS = [None, "int8", "float8_e4m3"]
SLOTS, ROWS, LENGTHS = 48, 4, [17, 40]


def filled(cache_dtype, rng, slots=SLOTS):
    """A cache of two texts, whose slots past their lengths mean nothing."""
    keys, values = (jnp.asarray(rng.normal(size=(3, 2, 2, slots, 6)), jnp.float32) for _ in range(2))
    cache = empty_cache(CONFIG, 2, slots, jnp.dtype(jnp.float32), cache_dtype)
    return cache.append(0, cache.stored(keys, values), jnp.zeros(2, jnp.int32))


def given(rng, visible):
    """A layer's projections of ROWS rows of both texts, and what `extend` takes beside them."""
    projections = [jnp.asarray(rng.normal(size=(2, ROWS, heads, 6)), jnp.float32) for heads in (4, 2, 2)]
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    positions = lengths[:, None] + jnp.arange(ROWS, dtype=jnp.int32)[None]
    angles = rotation(CONFIG.rope, 6, positions, jnp.dtype(jnp.float32))
    rows = RowBatch(jnp.zeros((2, ROWS), jnp.int32), positions, lengths, visible)
    return (*projections, angles, rows, CONFIG.attention(1))


def dense(cache, queries, own, mask, blocks=None):
    """Attention in NumPy float64 over what `cache.stacks.read` and `own.read` give, one layer."""
    stored, new = (
        [np.asarray(x, np.float64) for x in part.read(jnp.dtype(jnp.float32))] for part in (cache.stacks, own)
    )
    out = np.zeros(queries.shape)
    for b, head, row in np.ndindex(2, 4, ROWS):
        slots = np.arange(LENGTHS[b])
        if blocks is not None:
            slots = np.concatenate([np.arange(n * 16, n * 16 + 16) for n in blocks[b, head // 2] if n >= 0])
            slots = slots[slots < LENGTHS[b]]
        seen = np.flatnonzero(mask[b, row])
        keys, values = (
            np.concatenate([old[1, b, head // 2, slots], now[0, b, head // 2, seen]])
            for old, now in zip(stored, new, strict=True)
        )
        scores = keys @ np.asarray(queries[b, row, head], np.float64) / 6**0.5
        weights = np.exp(scores - scores.max())
        out[b, row, head] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("cache_dtype", FORMS)
@pytest.mark.parametrize("traced", [False, True], ids=["layer 1", "a traced layer"])
@pytest.mark.parametrize("kind", ["causal", "tree", "blocks"])
def test_a_layer_s_rows_extend_a_cache(cache_dtype, traced, kind):
    """They are stored in the cache's form and see each other in that form."""
    rng = np.random.default_rng(3)
    causal = np.broadcast_to(np.tril(np.ones((ROWS, ROWS), bool)), (2, ROWS, ROWS))
    tree = causal & (np.arange(ROWS) != 1)[None, None] | np.eye(ROWS, dtype=bool)[None]
    mask = causal if kind == "causal" else tree
    blocks = rng.permuted(np.tile(np.arange(3), (3, 2, 2, 1)), axis=-1)[..., :2].astype(np.int32)
    visible = {
        "causal": Causal(),
        "tree": TreeMask(jnp.asarray(mask)),
        "blocks": TreeMaskOverBlocks(jnp.asarray(mask), jnp.asarray(blocks), 16),
    }[kind]
    cache = filled(cache_dtype, rng)
    queries, keys, values, angles, rows, spec = given(rng, visible)

    @jax.jit
    def extended(cache, layer):
        return cache.extend(layer, Apart(queries, keys, values), angles, rows, spec)

    at = jnp.int32(1) if traced else 1
    call = (
        extended
        if traced
        else lambda cache, layer: cache.extend(layer, Apart(queries, keys, values), angles, rows, spec)
    )
    mixed, new, query, after = call(cache, at)
    turned = np.asarray(angles.apply(queries))
    np.testing.assert_allclose(query[0], turned[:, 0], rtol=0, atol=1e-6)
    wanted = cache.stored(angles.apply(keys).swapaxes(1, 2)[None], values.swapaxes(1, 2)[None])
    for found, expected in zip(new.read(cache.dtype), wanted.read(cache.dtype), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 if cache_dtype else 1e-6)
    for b, length in enumerate(LENGTHS):
        for was, now, row in zip(*map(jax.tree.leaves, (cache.stacks, after.stacks, new)), strict=True):
            expected = np.array(was[:, b])
            expected[1, :, length : length + ROWS] = row[0, b]
            np.testing.assert_array_equal(np.asarray(now[:, b]), expected)
    seen = dense(cache, turned, new, mask, blocks[1] if kind == "blocks" else None)
    np.testing.assert_allclose(mixed, seen, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cache_dtype", FORMS)
def test_a_commit_keeps_a_path_of_every_layer_with_its_scales(cache_dtype):
    rng = np.random.default_rng(4)
    cache = filled(cache_dtype, rng)
    rows = cache.stored(*(jnp.asarray(rng.normal(size=(3, 2, 2, ROWS, 6)), jnp.float32) for _ in range(2)))
    path = np.asarray([[0, 2, 3], [0, 1, 1]])
    after = jax.jit(type(cache).keep)(cache, rows, jnp.asarray(path, jnp.int32), jnp.asarray(LENGTHS, jnp.int32))
    for was, now, row in zip(*map(jax.tree.leaves, (cache.stacks, after.stacks, rows)), strict=True):
        expected = np.array(was)
        for b, length in enumerate(LENGTHS):
            expected[:, b, :, length : length + 3] = np.asarray(row)[:, b][:, :, path[b]]
        np.testing.assert_array_equal(np.asarray(now), expected)


@pytest.mark.parametrize("cache_dtype", FORMS)
def test_a_part_goes_into_another_slot(cache_dtype):
    rng = np.random.default_rng(5)
    cache, other = filled(cache_dtype, rng, 2 * BLOCK), filled(cache_dtype, rng, 2 * BLOCK)
    start, other = jnp.int32(BLOCK), take_row(other, jnp.int32(0))
    part = jax.jit(type(cache).part)(cache, jnp.int32(1), start)
    after = jax.jit(type(cache).append)(other, jnp.int32(0), part, start[None])
    for source, was, now in zip(*map(jax.tree.leaves, (cache.stacks, other.stacks, after.stacks)), strict=True):
        expected = np.array(was)
        expected[:, 0, :, BLOCK:] = np.asarray(source)[:, 1, :, BLOCK:]
        np.testing.assert_array_equal(np.asarray(now), expected)


@pytest.mark.parametrize("cache_dtype", FORMS)
def test_scores_are_those_of_the_keys_as_they_are_read(cache_dtype):
    rng = np.random.default_rng(6)
    cache, query = filled(cache_dtype, rng), rng.normal(size=(2, 4, 6)).astype(np.float32)
    begins, ends = jnp.asarray([2, 3], jnp.int32), jnp.asarray(LENGTHS, jnp.int32)
    keys = np.asarray(cache.stacks.read(cache.dtype)[0], np.float64)[1]
    best = np.asarray(cache.top_positions(1, jnp.asarray(query), begins, ends, 5))
    blocks = np.asarray(cache.top_blocks(1, jnp.asarray(query), jnp.asarray([0, 0], jnp.int32), ends, 2, 16))
    stored = cache.gather(1, jnp.asarray(best))
    for b, head in np.ndindex(2, 2):
        scores = keys[b, head] @ query[b, 2 * head : 2 * head + 2].sum(axis=0)
        order = np.argsort(-scores[int(begins[b]) : LENGTHS[b]])[:5] + int(begins[b])
        np.testing.assert_array_equal(best[b, head], order)
        of_blocks = [scores[n : min(n + 16, LENGTHS[b])].max() for n in range(0, LENGTHS[b], 16)]
        np.testing.assert_array_equal(blocks[b, head], np.argsort(-np.asarray(of_blocks))[:2])
        for stack, taken in zip(jax.tree.leaves(cache.stacks), jax.tree.leaves(stored), strict=True):
            np.testing.assert_array_equal(np.asarray(taken)[0, b, head], np.asarray(stack)[1, b, head, order])
