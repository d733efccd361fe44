"""Joined linear maps compute what the parts compute; they are what decoding loads on GPUs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.implementation import compiling_for
from tests.models.test_decoder import BASE, VARIANTS, compute, random_decoder
from tokenswift_jax.checkpoint import load_decoder
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.quantized import quantized

PARTS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
WHOLES = {"qkv_proj", "gate_up_proj"}


def names_of(params):
    """The linear maps of the layers that the parameters are of."""
    return {path[-2] for path, _ in nnx.to_flat_state(params) if path[0] == "layers"} & (PARTS | WHOLES)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_joined_decoder_computes_the_same(name):
    fields, windows = VARIANTS[name]
    rng = np.random.default_rng(2)
    ids, positions = (jnp.asarray(rng.integers(0, 40, (2, 9)), jnp.int32) for _ in range(2))
    with jax.enable_x64(True):
        config = replace(model_config(BASE | fields), sliding_windows=windows)
        apart = compute(random_decoder(config), ids, positions)
        model = joined(random_decoder(config))
        assert names_of(nnx.split(model)[1]) == WHOLES
        for got, want in zip(compute(model, ids, positions), apart, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_joined_weights_round_as_the_parts_do(kind):
    ids = jnp.asarray([[3, 1, 4, 1, 5]], jnp.int32)
    config = replace(model_config(BASE | VARIANTS["biases, untied"][0]), sliding_windows=(None, None, None))
    with jax.enable_x64(True):
        apart = compute(quantized(random_decoder(config), kind, backbone=True), ids, ids)
        model = quantized(joined(random_decoder(config)), kind, backbone=True)
        # Sums of whole groups in float32, in another order.
        for got, want in zip(compute(model, ids, ids), apart, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_joined_where_that_is_asked_for():
    parts, wholes, here = (load_decoder(DEMO_MODEL, join=join)[2] for join in (False, True, None))
    assert (names_of(parts), names_of(wholes), names_of(here)) == (PARTS, WHOLES, PARTS)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (parts, wholes)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["biases, untied", "tied, head norms, one window a layer"])
def test_gpu_kernels_extend_a_cache_as_plain_code_does(name):
    """One kernel normalises, rotates and writes the heads of a joined map; another adds to the stream and norms it."""
    fields = {"hidden_size": 64, "head_dim": 32} | VARIANTS[name][0]
    config = replace(model_config(BASE | fields), sliding_windows=(None, None, None))
    with jax.enable_x64(True):
        graph, params = nnx.split(joined(random_decoder(config)))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    rng = np.random.default_rng(5)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 3)), jnp.int32)
    lengths, mask = jnp.asarray([5, 0], jnp.int32), jnp.broadcast_to(jnp.tri(3, dtype=bool), (2, 3, 3))
    cache = empty_cache(config, 2, 16, jnp.dtype(jnp.float32))
    cache = jax.tree.map(lambda stack: jnp.asarray(rng.normal(size=stack.shape), stack.dtype), cache)
    rows = RowBatch(tokens, lengths[:, None] + jnp.arange(3, dtype=jnp.int32)[None], lengths, TreeMask(mask))

    def extended(params, cache):
        return forward_rows(nnx.merge(graph, params), rows, cache)

    found, program = {}, {}
    for way in ("reference", "gpu"):
        with compiling_for(way, interpret=way == "gpu"):
            found[way] = jax.jit(extended)(params, cache)
            program[way] = str(jax.make_jaxpr(extended)(params, cache))
    assert {name: text.count("name=rotate_write") for name, text in program.items()} == {"reference": 0, "gpu": 3}
    assert {name: text.count("name=add_norm") for name, text in program.items()} == {"reference": 0, "gpu": 5}
    for got, want in zip(*map(jax.tree.leaves, (found["gpu"], found["reference"])), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)
