"""Programs do not grow with the batch; nothing is allocated here."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.engine.engine import CHUNK_TOKENS
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask, next_rows
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.step.loop import compiled

CONFIG = tiny.tiny_config()
GRAPH, PARAMS = tiny.abstract_model(CONFIG)
DRAFT, ROWS, CAPACITY = DraftCacheShape(128, 8, 1, None), 5, 1024


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def verified_and_committed(params, tokens, path, lengths, full, draft):
    """The caches' part of an iteration: a tree's rows, the commit of a path, the draft cache after it."""
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((ROWS, ROWS), bool)), (*lengths.shape, ROWS, ROWS))
    rows = RowBatch(tokens, lengths[:, None] + jnp.arange(ROWS, dtype=jnp.int32)[None], lengths, TreeMask(mask))
    done, full = forward_rows(nnx.merge(GRAPH, params), rows, full)
    full, after = full.keep(done.new, path, lengths), lengths + path.shape[1]
    return full, DRAFT.advance(draft, full, done.new.along(path), lengths, after, done.query, CONFIG)


def prefilled(params, tokens, path, lengths, full, draft):
    """A prompt's chunk."""
    done, full = forward_rows(nnx.merge(GRAPH, params), next_rows(tokens, lengths), full)
    return done.hidden, full


@cache
def instructions(function, batch, cache_dtype):
    """Counts a compiled program's instructions. LLVM's optimisation, which comes after them, is off."""
    dtype = jnp.dtype(jnp.float32)
    full = jax.eval_shape(lambda: empty_cache(CONFIG, batch, CAPACITY, dtype, cache_dtype))
    draft = jax.eval_shape(lambda: DRAFT.empty(CONFIG, batch, dtype, cache_dtype))
    arguments = PARAMS, ints(batch, ROWS), ints(batch, ROWS), ints(batch), full, draft
    return counted(jax.jit(function, donate_argnums=(4, 5)).lower(*arguments))


def counted(lowered):
    text = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", text, re.MULTILINE))


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("function", [verified_and_committed, prefilled])
def test_instructions_at_batch_1_8_and_64(function, cache_dtype):
    counts = [instructions(function, batch, cache_dtype) for batch in (1, 8, 64)]
    assert counts[1] == pytest.approx(counts[2], rel=0.02)
    assert max(counts) <= 1.3 * min(counts), counts


@pytest.mark.parametrize("schedule", ["fused", "partial"])
def test_instructions_of_a_whole_chunk(schedule):
    """Drafting, n-grams, verification and commit together."""
    sampling = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)
    speculation = SpeculationConfig(mode="tokenswift", schedule=schedule, node_budget=4, draft_cache=128)
    (named,) = speculative_plans(CONFIG, speculation, features_of(sampling), "cpu")
    function = compiled("chunk", GRAPH, named.plan, CHUNK_TOKENS + named.plan.depth)
    counts = []
    for batch in (1, 8, 64):
        arguments = tiny.abstract_call(named.plan, PARAMS, sampling, batch, CAPACITY)
        counts.append(counted(function.lower(*arguments, jax.ShapeDtypeStruct((), jnp.int32))))
    assert counts[1] == pytest.approx(counts[2], rel=0.02)
    assert max(counts) <= 1.3 * min(counts), counts
