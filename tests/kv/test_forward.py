"""Rows over a cache against the plain decoder over whole sequences, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from tests.engine_fixture import layout_of, prefilled_state
from tokenswift_jax.engine.prefill import chunk_rows
from tokenswift_jax.kv.dense import FullCache, empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import Causal, RowBatch, TreeMask
from tokenswift_jax.models.attention import causal_attention
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import autoregressive_plan

# Sums of a few hundred float64 terms in another order.
BOUND = 1e-10
TEXT = np.random.default_rng(0).integers(0, 64, 400).tolist()
# Depth-first: two branches below the root, one of them forked twice; the last row hangs on row 2.
PARENTS = [0, 0, 1, 2, 1, 0, 5, 2]
WINDOWED = tiny.tiny_config(
    model_type="qwen3",
    use_sliding_window=True,
    sliding_window=6,
    layer_types=["sliding_attention", "full_attention"],
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def ints(values):
    return jnp.asarray(values, jnp.int32)


@partial(jax.jit, static_argnums=0)
def plain(graph, params, tokens, positions):
    """Hidden states of a whole sequence without a cache, and each layer's keys and values."""
    model = nnx.merge(graph, params)
    hidden, (queries, keys, values), _ = model.hidden(tokens, positions, causal_attention(model.config), None)
    return hidden, (keys, values, queries)


def whole(model, tokens):
    """NumPy (hidden [rows, size], keys, values [layers, kv_heads, rows, dim], queries) of one text."""
    padded = tokens + [0] * (448 - len(tokens))  # one length, one compilation
    hidden, parts = plain(model.graphdef, model.params, ints([padded]), ints([range(len(padded))]))
    keys, values, queries = (np.asarray(part)[:, 0, : len(tokens)].swapaxes(1, 2) for part in parts)
    return np.asarray(hidden)[0, : len(tokens)], keys, values, queries


@partial(jax.jit, static_argnums=0)
def over_cache(graph, params, tokens, positions, cache, lengths, mask, key_positions=None):
    model = nnx.merge(graph, params)
    visible = Causal() if mask is None else TreeMask(mask)
    return forward_rows(model, RowBatch(tokens, positions, lengths, visible, key_positions), cache)


def tree():
    """Mask, depths and paths (rows from the root down) of PARENTS."""
    paths = []
    for row, parent in enumerate(PARENTS):
        paths.append([*paths[parent], row] if row else [0])
    mask = np.zeros((len(PARENTS), len(PARENTS)), bool)
    for row, path in enumerate(paths):
        mask[row, path] = True
    return mask, np.asarray([len(path) - 1 for path in paths]), paths


def poisoned(config, texts, sequences):
    """A cache that holds all but the last token of each text, and NaN elsewhere."""
    shape = (2, config.num_layers, len(texts), config.num_kv_heads, 512, config.head_dim)
    cache = np.full(shape, np.nan)
    for row, (text, (_, keys, values, _)) in enumerate(zip(texts, sequences, strict=True)):
        used = len(text) - 1
        cache[0, :, row, :, :used], cache[1, :, row, :, :used] = keys[:, :, :used], values[:, :, :used]
    return cache


@pytest.mark.parametrize("config", [tiny.tiny_config(), WINDOWED], ids=["all positions", "sliding windows"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["slots in text order", "slots in any order"])
def test_every_tree_row_is_the_end_of_its_own_path(config, shuffled):
    """Hidden states, K/V and the root's queries are those of the text followed by the row's path."""
    model, rng = tiny.tiny_model(config, jnp.float64), np.random.default_rng(1)
    texts = [TEXT[:301], TEXT[5:6], TEXT[9:49]]
    mask, depths, paths = tree()
    tokens = rng.integers(0, config.vocab_size, (3, len(PARENTS)))
    tokens[:, 0] = [text[-1] for text in texts]
    lengths = np.asarray([len(text) - 1 for text in texts])
    cache, key_positions = poisoned(config, texts, [whole(model, text) for text in texts]), None
    if shuffled:
        stored = np.full((config.num_layers, 3, config.num_kv_heads, 512), -(2**30))
        for at in np.ndindex(stored.shape[:3]):
            order = rng.permutation(lengths[at[1]])
            stored[at][: len(order)] = order
            for stack in cache:
                stack[at][: len(order)] = stack[at][order]
        key_positions = ints(stored)
    rows, after = over_cache(
        model.graphdef,
        model.params,
        ints(tokens),
        ints(lengths[:, None] + depths),
        FullCache(jnp.asarray(cache[0]), jnp.asarray(cache[1])),
        ints(lengths),
        jnp.asarray(np.broadcast_to(mask, (3, *mask.shape))),
        key_positions,
    )
    for row, text in enumerate(texts):
        used = lengths[row]
        for node, path in enumerate(paths):
            hidden, keys, values, queries = whole(model, text[:-1] + tokens[row, path].tolist())
            np.testing.assert_allclose(rows.hidden[row, node], hidden[-1], rtol=0, atol=BOUND)
            np.testing.assert_allclose(rows.new.keys[:, row, :, node], keys[:, :, -1], rtol=0, atol=BOUND)
            np.testing.assert_allclose(rows.new.values[:, row, :, node], values[:, :, -1], rtol=0, atol=BOUND)
            if node == 0:
                np.testing.assert_allclose(rows.query[:, row], queries[:, :, -1], rtol=0, atol=BOUND)
        for before, now, own in ((cache[0], after.keys, rows.new.keys), (cache[1], after.values, rows.new.values)):
            # The slots before are untouched, the rows are behind them, and nothing is written beyond.
            np.testing.assert_array_equal(now[:, row, :, :used], before[:, row, :, :used])
            np.testing.assert_array_equal(now[:, row, :, used : used + len(PARENTS)], own[:, row])
            assert np.isnan(now[:, row, :, used + len(PARENTS) :]).all()


def test_prefill_of_unequal_prompts_in_chunks():
    """K/V of each prompt as of the text alone; the last prompt token is the root."""
    config = WINDOWED
    model = tiny.tiny_model(config, jnp.float64)
    texts = [TEXT[:400], TEXT[:1], TEXT[50:307]]
    plain = autoregressive_plan(config, SamplingFeatures.SAMPLED).plan
    state = prefilled_state(model, texts, layout_of(plain, jnp.float64, 512))
    assert chunk_rows(400) < 400, "the longest must take several chunks"
    assert state.length.tolist() == [399, 0, 256]
    assert state.cache.keys.dtype == jnp.float64
    for row, text in enumerate(texts):
        _, keys, values, _ = whole(model, text)
        used = len(text) - 1
        np.testing.assert_allclose(state.cache.keys[:, row, :, :used], keys[:, :, :used], rtol=0, atol=BOUND)
        np.testing.assert_allclose(state.cache.values[:, row, :, :used], values[:, :, :used], rtol=0, atol=BOUND)
        assert state.tokens[row, : len(text)].tolist() == text
        last = {token: position for position, token in enumerate(text)}
        assert state.last_positions is not None
        seen = {t: p for t, p in enumerate(state.last_positions[row].tolist()) if p >= 0}
        assert seen == last


def test_chunks_of_any_size_fill_the_same_cache():
    config = tiny.tiny_config()
    model, text = tiny.tiny_model(config, jnp.float64), TEXT[:70]
    hidden, keys, values, _ = whole(model, text)
    for sizes in ([70], [1, 34, 34, 1]):
        cache, start, found = empty_cache(config, 1, 256, jnp.dtype(jnp.float64)), 0, []
        for size in sizes:
            piece, positions = text[start : start + size], range(start, start + size)
            rows, cache = over_cache(
                model.graphdef,
                model.params,
                ints([piece]),
                ints([positions]),
                cache,
                ints([start]),
                None,
            )
            found.append(rows.hidden[0])
            start += size
        np.testing.assert_allclose(np.concatenate(found), hidden, rtol=0, atol=BOUND)
        np.testing.assert_allclose(cache.keys[:, 0, :, :70], keys, rtol=0, atol=BOUND)
        np.testing.assert_allclose(cache.values[:, 0, :, :70], values, rtol=0, atol=BOUND)
