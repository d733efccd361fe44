"""The collectives of a compiled chunk's loop, counted with their bytes: no device sends logits or its cache."""

import re
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from parallel_models import CAPACITY, FEW, first_call, model_of

from tokenswift_jax import SamplingConfig
from tokenswift_jax.hardware.collectives import collectives_of
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.rules import shardings
from tokenswift_jax.step.loop import run_chunk

DEVICES = 8


def in_loop(text):
    """How often an iteration runs each kind of collective with so many bytes."""
    return sum((Counter({(each.kind, each.bytes): each.count}) for each in collectives_of(text)), Counter())


def of_vocabulary(plan, devices, partial):
    """The draw, and the candidates of the draft heads, whose inner columns the same devices share."""
    found = Counter({("all-gather", devices * plan.rows * 8): 1})  # of each device a score and an id, 4 bytes each
    found["all-reduce", 4 * plan.rows] += 1  # min-p: the highest score of all
    if plan.tree.widths:
        heads = plan.config.num_draft_heads
        guesses = heads + partial
        found["all-gather", 4 * plan.config.hidden_size] += heads  # the hidden state behind each draft head
        # Of each device its best candidates, with their ids, and the sum of all shares.
        local = min(max(plan.tree.widths), plan.config.vocab_size // devices)
        found["all-gather", devices * guesses * 4 * 2 * (local + 1)] += 1
        found["all-reduce", 4 * guesses] += 1  # min-p
    return found


@pytest.mark.parametrize("schedule", ["autoregressive", "fused", "partial"])
def test_a_step_sums_twice_a_layer_and_gathers_no_logits(schedule):
    graph, plan, inputs, state = first_call(schedule)
    mesh, config = make_mesh(MeshSpec(model=DEVICES)), model_of()[0]
    with jax.set_mesh(mesh):
        placed = jax.device_put((inputs, state), shardings(mesh, (inputs, state)))
        run = jax.jit(lambda i, s: run_chunk(graph, plan, FEW, i, s, jnp.int32(FEW)))
        found = in_loop(run.lower(*placed).compile().as_text())

    def forward(rows):
        """Two sums a layer and one for the embeddings, float32."""
        return Counter({("all-reduce", 4 * rows * config.hidden_size): 2 * config.num_layers + 1})

    expected = forward(plan.rows) + of_vocabulary(plan, DEVICES, schedule == "partial")
    if schedule == "partial":
        expected += forward(1)  # the root over the draft cache
    assert found == expected


def test_a_greedy_step_needs_one_merge():
    graph, plan, inputs, state = first_call("autoregressive", sampling=SamplingConfig(temperature=0.0))
    mesh = make_mesh(MeshSpec(model=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put((inputs, state), shardings(mesh, (inputs, state)))
        run = jax.jit(lambda i, s: run_chunk(graph, plan, FEW, i, s, jnp.int32(FEW)))
        found = in_loop(run.lower(*placed).compile().as_text())
    assert found == {("all-reduce", 128): 5, ("all-gather", 16): 1}


def test_under_context_a_layer_gathers_once():
    """Results of attention with their log-sum-exp. The MLPs, which the devices share, sum once a layer, and so do the
    embeddings of a forward; a selection gathers scores and positions and sums the K/V of the draft cache."""
    graph, plan, inputs, state = first_call("partial")
    mesh, config = make_mesh(MeshSpec(context=2)), plan.config
    state = replace(state, cache=full_cache(config, 1, CAPACITY, jnp.dtype(jnp.float32), None, Cyclic(2)))
    with jax.set_mesh(mesh):
        placed = jax.device_put((inputs, state), shardings(mesh, (inputs, state)))
        run = jax.jit(lambda i, s: run_chunk(graph, plan, FEW, i, s, jnp.int32(FEW)), donate_argnums=1)
        text = run.lower(*placed).compile().as_text()
    selected = 24 - 4  # of each KV head; `first_call`
    expected = of_vocabulary(plan, 2, partial=True)
    expected["all-gather", 2 * plan.rows * config.num_heads * (config.head_dim + 1) * 4] += config.num_layers
    for rows in (plan.rows, 1):  # the target over the tree, the root over the draft cache
        expected["all-reduce", 4 * rows * config.hidden_size] += config.num_layers + 1
    # The selection loops over the layers: a score and a position, 4 bytes each, then keys and values, sinks included.
    expected["all-gather", 2 * config.num_kv_heads * selected * 8] += config.num_layers
    expected["all-reduce", 2 * config.num_kv_heads * 24 * config.head_dim * 4] += config.num_layers
    assert in_loop(text) == expected
    slots = full_cache(config, 1, CAPACITY, jnp.dtype(jnp.float32), None, Cyclic(2)).keys.shape[4]
    assert not re.findall(rf"f32\[\S*{slots},{config.head_dim}\]\S* copy\(", text), "XLA copies the cache"
