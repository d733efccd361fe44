"""Joined linear maps compute what the parts compute; they are what decoding loads on GPUs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_decoder import BASE, VARIANTS, compute, random_decoder
from tokenswift_jax.checkpoint import load_decoder
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
