"""Loops of traced programs: XLA for GPUs orders a loop in a CUDA graph by the kernels of its condition."""

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from pallas_kernels.implementation import compiling_for
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.hardware import shapes, steps
from tokenswift_jax.in_place import update_if
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate import plans
from tokenswift_jax.step import loop

CONFIG = shapes.config_of("tiny")


def loops_of(jaxpr):
    """The conditions of all loops of a traced program, those of inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation.params["cond_jaxpr"].jaxpr
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from loops_of(inner)


def is_computed(condition):
    """Whether the condition is a computation, not an array that the loop carries."""
    return condition.outvars[0] not in condition.invars


def traced_chunk(config: ModelConfig, speculation, sampling):
    features = features_of(sampling)
    if speculation.mode == "autoregressive":
        plan = plans.autoregressive_plan(config, features).plan
    else:
        plan = plans.speculative_plans(config, speculation, features, "accelerator")[0].plan
    graph, params = steps.decoder_shapes(config, jnp.float32, True)
    inputs, state = jax.eval_shape(lambda p: steps.first_call(plan, p, jnp.dtype(jnp.float32), 2, 1024), params)
    return jax.make_jaxpr(lambda *given: loop.run_chunk(graph, plan, 64, *given))(inputs, state, jnp.int32(1)).jaxpr


@pytest.mark.parametrize(
    "speculation",
    [
        SpeculationConfig(mode="autoregressive"),
        SpeculationConfig(mode="tokenswift", schedule="fused"),
        SpeculationConfig(mode="tokenswift", schedule="partial", draft_cache=128),
        SpeculationConfig(mode="selfspec", draft_cache=128),
        SpeculationConfig(mode="selfspec", draft_cache=192, draft_block=64),
    ],
    ids=lambda each: f"{each.mode}-{each.schedule}-{each.draft_block}",
)
def test_the_conditions_of_a_chunks_loops_are_computed(speculation):
    sampling = SamplingConfig(temperature=0.7, top_k=20, top_p=0.8)
    with compiling_for("gpu"):
        conditions = list(loops_of(traced_chunk(CONFIG, speculation, sampling)))
    assert conditions
    assert all(map(is_computed, conditions))


def test_an_update_under_a_condition():
    update = jax.jit(lambda on, x: update_if(on, lambda tree: {"a": tree["a"] + 1}, {"a": x}))
    given = jnp.arange(3, dtype=jnp.int32)
    assert update(jnp.array(True), given)["a"].tolist() == [1, 2, 3]
    assert update(jnp.array(False), given)["a"].tolist() == [0, 1, 2]


def test_a_condition_that_is_carried_would_be_found():
    carried = jax.make_jaxpr(lambda on: jax.lax.while_loop(lambda c: c[0], lambda c: (~c[0], c[1]), (on, on)))
    assert not any(map(is_computed, loops_of(carried(jnp.array(True)).jaxpr)))
