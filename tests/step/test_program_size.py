"""Programs do not grow with the batch, nor their kernels with the layers; nothing is allocated here."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

from pallas_kernels.rotate_write import rotate_write
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.engine.plan_programs import CHUNK_TOKENS
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask, next_rows
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate.plans import autoregressive_plan, speculative_plans
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


def compiled_text(lowered):
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()


def counted(lowered):
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", compiled_text(lowered), re.MULTILINE))


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("function", [verified_and_committed, prefilled])
def test_instructions_at_batch_1_8_and_64(function, cache_dtype):
    counts = [instructions(function, batch, cache_dtype) for batch in (1, 8, 64)]
    assert counts[1] == pytest.approx(counts[2], rel=0.02)
    assert max(counts) <= 1.3 * min(counts), counts


def prefill_of(layers, capacity):
    """The compiled text of a prompt's chunk, and the shape of a cache's array in it."""
    model = tiny.tiny_config(num_hidden_layers=layers)
    graph, params = tiny.abstract_model(model)
    full = jax.eval_shape(lambda: empty_cache(model, 1, capacity, jnp.dtype(jnp.float32)))
    arguments = params, ints(1, ROWS), ints(), full
    return compiled_text(compiled("prefill", graph).lower(*arguments)), "f32[{}]".format(
        ",".join(map(str, full.keys.shape))
    )


def test_kernels_do_not_grow_with_the_layers():
    """XLA for CPU compiles equal fused computations once."""
    kinds = []
    for layers in (3, 6):
        text, _ = prefill_of(layers, CAPACITY)
        bodies = re.findall(r"^%fused_computation[^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        kinds.append({re.sub(r"%[\w.\-]+|, metadata=\{[^}]*\}|/\*.*?\*/", "", body) for body in bodies})
    assert len(kinds[0]) == len(kinds[1])


@pytest.mark.parametrize("capacity", [256, CAPACITY])
def test_prefill_copies_no_cache(capacity):
    text, shape = prefill_of(3, capacity)
    assert shape in text
    assert not re.search(re.escape(shape) + r"\S* copy\(", text)


@pytest.mark.parametrize("schedule", ["fused", "partial"])
def test_instructions_of_a_whole_chunk(schedule):
    """Drafting, n-grams, verification and commit together."""
    sampling = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)
    speculation = SpeculationConfig(mode="tokenswift", schedule="partial", node_budget=4, draft_cache=128)
    speculation = speculation.with_mode("tokenswift", schedule)
    (named,) = speculative_plans(CONFIG, speculation, features_of(sampling), "cpu")
    function = compiled("chunk", GRAPH, named.plan, CHUNK_TOKENS + named.plan.depth)
    counts = []
    for batch in (1, 8, 64):
        arguments = tiny.abstract_call(named.plan, PARAMS, sampling, batch, CAPACITY)
        counts.append(counted(function.lower(*arguments, jax.ShapeDtypeStruct((), jnp.int32))))
    assert counts[1] == pytest.approx(counts[2], rel=0.02)
    assert max(counts) <= 1.3 * min(counts), counts


def test_a_chunk_returns_the_kinds_of_arrays_that_it_takes():
    """Its second call would compile it again otherwise: a weak type is enough."""
    sampling = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)
    plan = autoregressive_plan(CONFIG, features_of(sampling)).plan
    inputs, state = tiny.abstract_call(plan, PARAMS, sampling, 2, CAPACITY)
    after, _ = jax.eval_shape(compiled("chunk", GRAPH, plan, CHUNK_TOKENS), inputs, state, ints())
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), state
    )


def test_rotation_and_write_of_joined_heads_are_one_program_for_any_batch():
    def equations(batch):
        heads, cache = jnp.zeros((batch, ROWS, 1, 4, 8)), jnp.zeros((1, batch, 1, 16, 8))
        angles, starts = jnp.zeros((batch, ROWS, 4)), jnp.zeros(batch, jnp.int32)
        traced = jax.make_jaxpr(lambda *given: rotate_write(*given[:5], layer=0, starts=given[5]))
        return len(str(traced(heads, angles, angles, cache, cache, starts)).splitlines())

    assert equations(8) == equations(64)
