"""The bookkeeping kernels of a GPU on meshes: each group of one device calls them, and XLA never has to split one."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
import tiny

from pallas_kernels.implementation import compiling_for
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.parallel.mesh import make_mesh, use
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.rules import shardings
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.step.loop import run_chunk

BOOKKEEPING = {"commit_text", "draft_tree", "ngram_table"}


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (MeshSpec(data=2), BOOKKEEPING),
        (MeshSpec(model=2), set()),
        (MeshSpec(context=2), set()),
        (MeshSpec(data=2, model=2), set()),
    ],
)
def test_only_whole_devices_call_them(mesh, expected):
    config, sampling = tiny.tiny_config(head_dim=16), SamplingConfig(temperature=1.0, min_p=0.05)
    graph, params = tiny.abstract_model(config)
    fused = SpeculationConfig(mode="tokenswift", schedule="fused", node_budget=4)
    (named,) = speculative_plans(config, fused, features_of(sampling), "gpu")
    inputs, state = tiny.abstract_call(named.plan, params, sampling, 2, 256)
    if mesh.context > 1:
        split = jax.eval_shape(lambda: full_cache(config, 2, 256, state.cache.dtype, None, Cyclic(mesh.context)))
        state = replace(state, cache=split)
    devices = make_mesh(mesh)
    inputs, state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        (inputs, state),
        shardings(devices, (inputs, state)),
    )
    with compiling_for("gpu"), use(devices):
        traced = jax.make_jaxpr(lambda i, s: run_chunk(graph, named.plan, 8, i, s, jnp.int32(8)))(inputs, state)
    called = set(re.findall(r"\bname=(\w+)", str(traced)))
    assert called & BOOKKEEPING == expected
    assert "tree_attention" in called
