"""Compiled chunks need no memory of the cache's size, whatever capacity is reserved; nothing is allocated here."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import pytest
import tiny

from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.cache.full import cache_bytes
from tokenswift_jax.decoding import loop, plans, room
from tokenswift_jax.decoding import run as decoding
from tokenswift_jax.decoding.processors import processors_for
from tokenswift_jax.errors import UserError

CAPACITY = 65_536
CONFIG = tiny.tiny_config(vocab_size=256, hidden_size=64, head_dim=64)
# Greedy: what a draw costs is tested elsewhere, and compiles slowly.
SAMPLING = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)
MODES = {
    "autoregressive": {"mode": "autoregressive"},
    "partial": {"mode": "tokenswift", "schedule": "partial"},
    "fused": {"mode": "tokenswift", "schedule": "fused"},
    "ngram": {"mode": "ngram"},
    "selfspec": {"mode": "selfspec"},
}


@cache
def program(mode, batch, capacity):
    """The plan and the compiled chunk. LLVM's optimisation is off: buffers are assigned before it, and are the same."""
    processors = processors_for(SAMPLING)
    speculation = SpeculationConfig(draft_cache=256, **MODES[mode])
    named = plans.speculative_plans(CONFIG, speculation, processors, "cpu")
    plan = (named or [plans.autoregressive_plan(CONFIG, processors)])[0].plan
    graph, params = tiny.abstract_model(CONFIG)
    inputs, state = tiny.abstract_call(plan, params, SAMPLING, batch, capacity)
    function = loop.compiled("chunk", graph, plan, decoding.CHUNK_TOKENS + plan.depth)
    lowered = function.lower(inputs, state, jax.ShapeDtypeStruct((), jnp.int32))
    return plan, lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def makers(text, shape):
    """Instructions that give an array of the shape, by what they do; a fusion by what it ends with.

    `text` is a compiled program's; parameters, tuples' elements and views do not make an array.
    """
    ends = {}
    for name, body in re.findall(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        root = re.search(r"ROOT .*? = \S+ ([\w\-]+)\((%?[\w.\-]+)?", body)
        # a view of what was updated in place is the same buffer
        while root and root[1] == "bitcast":
            root = re.search(re.escape(root[2]) + r" = \S+ ([\w\-]+)\((%?[\w.\-]+)?", body)
        ends[name] = root[1] if root else None
    found = []
    for line in text.splitlines():
        made = re.search(r"= " + re.escape(shape) + r"\S* ([\w\-]+)\(", line)
        if made and made[1] == "fusion":
            found.append("fusion of " + str(ends[re.search(r"calls=%?([\w.\-]+)", line)[1]]))
        elif made and made[1] not in ("parameter", "get-tuple-element", "bitcast"):
            found.append(made[1])
    return found


@pytest.mark.parametrize("batch", [1, 4])
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
    assert len(made) >= 2 * CONFIG.num_layers * batch
    assert set(made) <= {"dynamic-update-slice", "fusion of dynamic-update-slice"}


def test_temporary_memory_is_the_same_at_any_capacity():
    """But for the text's own 4 bytes a position."""
    temps = [program("partial", 1, capacity)[1].memory_analysis().temp_size_in_bytes for capacity in (CAPACITY, 4 * CAPACITY)]
    assert temps[1] - temps[0] <= 2 * 4 * 3 * CAPACITY


def test_a_copy_would_be_found():
    """A second use of the old cache makes XLA copy it, and the search says so."""
    def reads_after_writing(cache, rows):
        return jax.lax.dynamic_update_slice(cache, rows, (0, 0)), cache.sum(axis=1)

    shape = jax.ShapeDtypeStruct((8, 4096), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)
    plain = jax.jit(lambda cache, rows: jax.lax.dynamic_update_slice(cache, rows, (0, 0)), donate_argnums=0)
    copying = jax.jit(lambda cache, rows: (plain(cache, rows), cache * 2), donate_argnums=0)
    assert set(makers(plain.lower(*shape).compile().as_text(), "f32[8,4096]")) <= {
        "dynamic-update-slice",
        "fusion of dynamic-update-slice",
    }
    del reads_after_writing
    found = makers(copying.lower(*shape).compile().as_text(), "f32[8,4096]")
    assert set(found) - {"dynamic-update-slice", "fusion of dynamic-update-slice"}


def test_texts_of_other_lengths_compile_nothing():
    model = tiny.tiny_model(tiny.tiny_config(num_hidden_layers=1))
    speculation = SpeculationConfig(mode="tokenswift", schedule="partial", draft_cache=32, node_budget=4)

    def run(prompts, most):
        steps = decoding.start(model, prompts, SAMPLING, speculation, max_new_tokens=most, capacity=512)
        for _ in steps:
            pass
        return steps.compile_seconds

    assert run([[1, 2, 3]], 40) > 0
    assert run([[5] * 29], 7) == 0
    assert run([[9]], 77) == 0
