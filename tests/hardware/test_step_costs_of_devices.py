"""The least bytes and operations of steps, and the times that they give on a device."""

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from flax import nnx

from pallas_kernels import cpu
from pallas_kernels.implementation import compiling_for
from tests import tiny
from tokenswift_jax.hardware import (
    clock,
    cpu_step,
    expected_times,
    roofline,
    shapes,
    steps,
)
from tokenswift_jax.hardware.targets import TARGETS
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.sample.features import SamplingFeatures


def test_memory_is_read_at_about_the_speed_of_copies():
    copied = clock.copy_bandwidth(1 << 26, passes=2)
    assert copied / 20 < clock.read_bandwidth(1, 0.2) < 20 * copied


def test_a_cpus_steps_are_timed_with_their_bytes():
    model = tiny.tiny_model(tiny.tiny_config())
    limit = cpu.ROWS
    found = cpu_step.cpu_steps(model, positions=(16, 40), rows=(1, 3), seconds=0)
    assert limit == cpu.ROWS
    assert [(one.positions, one.rows) for one in found] == [(16, 1), (16, 3), (40, 1), (40, 3)]
    assert all(part > 0 for one in found for part in (*one.numba, *one.xla))
    a_position = 2 * 2 * 2 * 8 * 4  # K and V, 2 layers, 2 KV heads, 8 numbers of 4 bytes
    assert found[2].cost.bytes - found[0].cost.bytes == 24 * a_position
    plain = roofline.step_cost("plain", model.config, 16, itemsize=4)
    assert (found[0].cost.bytes, found[0].cost.operations) == (plain.bytes, plain.operations)
    products = cpu_step.numpy_products(model.config, (1, 3), rounds=1)
    assert set(products) == {1, 3}
    assert min(products.values()) > 0
    assert clock.product_rate(64, jnp.float32, 1) > 0


@pytest.mark.parametrize("name", shapes.NAMES)
def test_weights_are_counted_as_the_decoder_has_them(name):
    config = shapes.config_of(name)
    made = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(jnp.bfloat16), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.split(made)[1])
    vectors = sum(leaf.size * 2 for leaf in leaves if leaf.ndim == 1)  # norms and biases: not counted
    assert roofline.parameter_bytes(config) == sum(leaf.size * 2 for leaf in leaves) - vectors


def test_a_plain_step_of_llama_reads_its_weights_its_cache_and_little_else():
    config = shapes.config_of("Llama-3.1-8B")
    short, long = (roofline.step_cost("plain", config, length) for length in (0, 16384))
    # 8.03e9 parameters without the embedding table (1 row of it is read) and the norms.
    weights = 2 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) + 4096 * 128256)
    assert short.bytes == weights + 32 * 2 * 8 * 128 * 2 + 8 * 128256
    assert long.bytes - short.bytes == 16384 * 131072  # 128 KiB a position
    assert short.operations == weights + 4 * 32 * 32 * 128
    h200 = TARGETS["h200"]
    assert long.seconds(h200, 1) == pytest.approx(long.bytes / 4.8e12)
    assert long.seconds(h200, 4) == pytest.approx(long.bytes / 4.8e12 / 4)
    prefill = roofline.step_cost("prefill", config, 0)
    assert prefill.seconds(h200, 1) == pytest.approx(prefill.operations / 989e12), "a chunk is bound by arithmetic"


def test_a_part_that_is_bound_by_arithmetic_leaves_no_bytes_to_the_others():
    """64 rows of 4 query heads a KV head: each byte of the cache is multiplied more often than an H200 has time for."""
    config, length = shapes.config_of("Llama-3.1-8B"), 126976
    cost, h200 = roofline.step_cost("verify-64", config, length), TARGETS["h200"]
    attention = 4 * 32 * 32 * 128 * 64 * (length + 64)
    cache = (length + 64) * 131072
    assert attention / 989e12 > cache / 4.8e12
    assert cost.seconds(h200, 1) == pytest.approx(attention / 989e12 + (cost.bytes - cache) / 4.8e12)
    assert cost.seconds(h200, 1) > 1.1 * max(cost.bytes / 4.8e12, cost.operations / 989e12)


@pytest.mark.parametrize("name", [name for name in steps.STEPS if name != "draft"])
def test_every_step_has_a_cost(name):
    config = shapes.config_of("tiny")
    costs = [roofline.step_cost(name, config, length) for length in (100, 200)]
    assert 0 < costs[0].bytes < costs[1].bytes
    assert costs[0].operations < costs[1].operations


def test_top_k_and_top_p_are_in_a_step_of_their_own():
    config = shapes.config_of("tiny")
    plain, top = (steps.plan_named(name, config) for name in ("verify-16", "verify-16-topkp"))
    assert (plain.features, top.features) == (SamplingFeatures.SAMPLED, SamplingFeatures.FILTERED)
    assert plain.tree == top.tree
    inputs, _ = steps.first_call(top, None, jnp.dtype(jnp.float32), 1, 512)
    asked = inputs.sequence
    assert (int(asked.top_k[0]), round(float(asked.top_p[0]), 3), float(asked.min_p[0])) == (20, 0.8, 0.0)
    cost = [roofline.step_cost(name, config, 100) for name in ("verify-16", "verify-16-topkp")]
    assert cost[0] == cost[1], "draws read no more of the model"


def test_the_lm_head_is_read_once_where_heads_and_rows_share_it():
    config, rows, heads = shapes.config_of("Llama-3.1-8B"), 16, 3
    head = 2 * 4096 * 128256
    shared = roofline.step_cost("verify-16", config, 0)
    plain = roofline.step_cost("plain", config, 0).bytes - 2 * 4 * 128256 - 32 * 2 * 2 * 8 * 128
    lines = rows * (1 + heads)
    logits = 4 * 128256 * (lines + rows + 3 * heads)  # all written, the draws' read, one row's heads chosen and read
    assert shared.bytes == plain + heads * 2 * 4096**2 + rows * 32 * 2 * 2 * 8 * 128 + logits
    assert roofline.chunk_cost("verify-16", config).bytes == head + heads * 2 * 4096**2 + 4 * heads * 128256
    assert roofline.chunk_cost("verify-64", config).bytes == roofline.chunk_cost("plain", config).bytes == 0
    assert roofline.step_cost("verify-64", config, 0).bytes > plain + head, "256 rows are more than 128"


@pytest.mark.parametrize(("one_pass", "rows"), [(True, [64]), (False, [3, 16])])
def test_products_with_the_lm_head_in_an_iteration(one_pass, rows):
    config = shapes.config_of("tiny")
    step = steps.step_named("verify-16", config, 512, jnp.float32, one_pass=one_pass)
    with compiling_for("gpu"):  # a CPU's products of few rows are Numba's
        traced = jax.make_jaxpr(step.function)(*step.arguments)
    loop = next(each for each in operations(traced.jaxpr) if each.primitive.name == "while")
    products = [each for each in operations(loop.params["body_jaxpr"].jaxpr) if each.primitive.name == "dot_general"]
    made = [each.outvars[0].aval for each in products]
    assert sorted(one.size // config.vocab_size for one in made if one.shape[-1] == config.vocab_size) == rows


def operations(jaxpr):
    """All operations, those within loops and calls included."""
    for each in jaxpr.eqns:
        yield each
        for inner in jax.extend.core.jaxprs_in_params(each.params):
            yield from operations(inner)


def test_expected_times_are_near_those_of_an_h200():
    """Steps of an 8B as they were when an H200 ran them; a 1.5B's products took longer there than their bytes."""
    config = shapes.config_of("Llama-3.1-8B")
    measured = {"plain": (4.92, 5.23, 6.71, 8.52), "verify-16": (5.58, 6.01, 7.61, 9.58)}
    for step, times in measured.items():
        nodes = expected_times.BEFORE["Llama-3.1-8B", step]
        for length, milliseconds in zip(expected_times.LENGTHS, times, strict=True):
            at_that_time = {"nodes": nodes, "joined": False, "one_pass": False}
            found = 1e3 * expected_times.expected_seconds("H200", config, step, length, **at_that_time)
            assert found == pytest.approx(milliseconds, rel=0.02)


def test_verification_costs_rows_and_partial_drafting_a_second_pass():
    config = shapes.config_of("Qwen2.5-7B")
    plain, narrow, wide, both = (
        roofline.step_cost(name, config, 65536).bytes for name in ("plain", "verify-16", "verify-64", "partial-16")
    )
    assert plain < narrow < wide < 1.1 * plain
    assert both - narrow == pytest.approx(roofline.step_cost("plain", config, 4096).bytes, rel=0.1)
