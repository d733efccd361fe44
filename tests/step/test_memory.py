"""Compiled chunks need no memory of the cache's size, at any reserved capacity; nothing is allocated here."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import pytest
import tiny
from decoded import start

from pallas_kernels import cpu
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.engine import capacity as memory
from tokenswift_jax.engine.plan_programs import CHUNK_TOKENS
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK, cache_bytes, round_up
from tokenswift_jax.modes import used_fields
from tokenswift_jax.request import Request, batch_of
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate import ngram, plans
from tokenswift_jax.step import loop

CAPACITY = 65_536
CONFIG = tiny.tiny_config(vocab_size=256, hidden_size=64, head_dim=64)
# Greedy: what a draw costs is tested elsewhere, and compiles slowly.
SAMPLING = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)
MODES = {
    "autoregressive": {"mode": "autoregressive"},
    "partial": {"mode": "tokenswift", "schedule": "partial"},
    "partial blocks": {"mode": "tokenswift", "schedule": "partial", "draft_block": 64},
    "fused": {"mode": "tokenswift", "schedule": "fused"},
    "ngram": {"mode": "ngram"},
    "selfspec": {"mode": "selfspec"},
}


@cache
def program(mode, batch, capacity):
    """The plan and the compiled chunk. LLVM's optimisation is off: buffers are assigned before it, and are the same."""
    processors = features_of(SAMPLING)
    asked = SpeculationConfig(**MODES[mode])
    speculation = replace(asked, draft_cache=256) if "draft_cache" in used_fields(asked.mode, asked.schedule) else asked
    named = plans.speculative_plans(CONFIG, speculation, processors, "cpu")
    plan = (named or [plans.autoregressive_plan(CONFIG, processors)])[0].plan
    graph, params = tiny.abstract_model(CONFIG)
    inputs, state = tiny.abstract_call(plan, params, SAMPLING, batch, capacity)
    function = loop.compiled("chunk", graph, plan, CHUNK_TOKENS + plan.depth)
    lowered = function.lower(inputs, state, jax.ShapeDtypeStruct((), jnp.int32))
    return plan, lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def copied_in_an_iteration(text, shape, cache):
    """Copies of an array of a shape where a while loop's body also writes the cache: not in a selection, which is a
    loop of its own and rare."""
    bodies = re.findall(r"^%?[\w.\-]+ \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    writing = [body for body in bodies if re.search(re.escape(cache) + r"\S* (fusion|custom-call)\(", body)]
    assert writing
    return [line for body in writing for line in body.splitlines() if re.search(re.escape(shape) + r"\S* copy\(", line)]


def makers(text, shape):
    """The operations with an array of the shape in a compiled program's text: of a fusion the last one, of a call
    whose result has an operand's memory the function.

    Parameters, elements of tuples and views give none: they are somebody else's buffer.
    """
    views = ("bitcast", "get-tuple-element", "parameter")
    last = {}
    for name, body in re.findall(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        made = {
            value: (does, of) for value, does, of in re.findall(r"(%?[\w.\-]+) = \S+ ([\w\-]+)\((%?[\w.\-]+)?", body)
        }
        does, of = made.get(re.search(r"ROOT (%?[\w.\-]+) =", body)[1], ("tuple", None))
        while does == "bitcast":
            does, of = made[of]
        last[name] = does
    found = []
    for does, rest in re.findall(r"= " + re.escape(shape) + r"\S* ([\w\-]+)\((.*)", text):
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        if does == "custom-call" and "output_to_operand_aliasing={" in rest:
            does = re.search(r'custom_call_target="(\w+)"', rest)[1]
        found += [last[called[1]] if called else does] if does not in views else []
    return found


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_temporary_memory_and_copies(mode, batch):
    plan, compiled = program(mode, batch, CAPACITY)
    memory = compiled.memory_analysis()
    size = cache_bytes(CONFIG, batch, CAPACITY, jnp.dtype(jnp.float32))
    logits = batch * plan.rows * CONFIG.vocab_size * 4
    assert memory.alias_size_in_bytes >= size, "the cache is not donated"
    assert memory.temp_size_in_bytes < 0.05 * size + logits
    shape = f"f32[{CONFIG.num_layers},{batch},{CONFIG.num_kv_heads},{CAPACITY},{CONFIG.head_dim}]"
    made = makers(compiled.as_text(), shape)
    assert len(made) >= 2 * CONFIG.num_layers  # each layer's own rows at least, of one text after another
    assert set(made) == {"tokenswift_write" if batch > 1 and cpu.installed() else "dynamic-update-slice"}
    if plan.tree.ngram_k:
        table = jax.eval_shape(lambda: ngram.empty(batch, CAPACITY, SpeculationConfig().ngram_slots)).entries.shape
        made = makers(compiled.as_text(), f"s32[{','.join(map(str, table))}]")
        assert made
        assert set(made) <= {"scatter", "dynamic-update-slice"}, "the n-gram table is copied"
    if mode in ("partial", "selfspec"):
        slots = round_up(256 + (4 if mode == "selfspec" else 1))  # the positions, and the drafted rows
        draft = f"f32[{CONFIG.num_layers},{batch},{CONFIG.num_kv_heads},{slots},{CONFIG.head_dim}]"
        assert draft in compiled.as_text()
        assert not copied_in_an_iteration(compiled.as_text(), draft, shape)


def test_temporary_memory_is_the_same_at_any_capacity():
    small, large = (program("partial", 1, capacity)[1].memory_analysis() for capacity in (CAPACITY, 4 * CAPACITY))
    # the text itself is 4 bytes a position, and a scatter into it may be given a copy
    assert large.temp_size_in_bytes - small.temp_size_in_bytes <= 4 * 3 * CAPACITY


def test_a_copy_would_be_found():
    """A use of the old cache after the update makes XLA keep both."""

    def write(cache, rows):
        return jax.lax.dynamic_update_slice(cache, rows, (0, 0))

    def text(function):
        cache, rows = jax.ShapeDtypeStruct((8, 4096), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)
        return jax.jit(function, donate_argnums=0).lower(cache, rows).compile().as_text()

    assert set(makers(text(write), "f32[8,4096]")) == {"dynamic-update-slice"}
    both = makers(text(lambda cache, rows: (write(cache, rows), cache[::-1])), "f32[8,4096]")
    assert set(both) > {"dynamic-update-slice"}


def test_texts_of_other_lengths_compile_nothing():
    model = tiny.tiny_model(tiny.tiny_config(num_hidden_layers=1))
    speculation = SpeculationConfig(mode="medusa", node_budget=4)

    def seconds(prompts, most):
        run = start(model, prompts, SAMPLING, speculation, max_new_tokens=most, capacity=512)
        assert sum(len(step.rows[0].log) for step in run) == most
        return run.compile_seconds

    assert seconds([[1, 2, 3]], 40) > 0
    assert seconds([[5] * 29], 7) == 0
    assert seconds([[9]], 77) == 0


def _asked(prompts: list[int], new: int) -> list[Request]:
    return batch_of([range(length) for length in prompts], SamplingConfig(), max_new_tokens=new)


@pytest.mark.parametrize("longest", [1, 254, 255, 4000, 5119, 100_000])
@pytest.mark.parametrize("rows", [1, 101])
def test_capacity_has_room_for_text_and_scratch_rows(longest, rows):
    """Whole blocks, at most an eighth and a block more than what is needed."""
    needed = longest + 1 + rows + 1
    capacity = memory.capacity_for(CONFIG, _asked([longest], 1), rows, 256, None)
    assert needed <= capacity <= max(512, needed + 256 + needed // 8)
    assert capacity % BLOCK == 0
    assert memory.capacity_for(CONFIG, _asked([1, longest, 1], 1), rows, 256, None) == capacity, "the longest decides"
    exact = round_up(needed)
    assert memory.capacity_for(CONFIG, _asked([longest], 1), rows, 256, exact + 1) == exact + BLOCK
    with pytest.raises(UserError, match=rf"^capacity {exact - 1} is too small: this request needs {exact} positions$"):
        memory.capacity_for(CONFIG, _asked([longest], 1), rows, 256, exact - 1)


def test_capacity_has_room_for_the_last_chunk_of_prefill():
    assert memory.capacity_for(CONFIG, _asked([300], 1), 1, 1024, None) == 1024


def test_positions_beyond_the_model_s():
    limit = CONFIG.max_position_embeddings
    assert memory.capacity_for(CONFIG, _asked([limit - 10], 10), 1, 256, None) > limit
    with pytest.raises(UserError, match=rf"exceeds the model's {limit} positions; .*rope_override="):
        memory.capacity_for(CONFIG, _asked([limit - 10], 11), 1, 256, None)


def test_a_request_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    model = tiny.tiny_model(tiny.tiny_config(num_hidden_layers=1))
    speculation = SpeculationConfig(mode="autoregressive")
    with pytest.raises(UserError, match="capacity 64 is too small: this request needs 512 positions"):
        start(model, [[1] * 200], SAMPLING, speculation, max_new_tokens=100, capacity=64)
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"the cache of 3 x 4096 positions needs 0.0 GB"):
        start(model, [[1]] * 3, SAMPLING, speculation, max_new_tokens=4000, capacity=4096)
