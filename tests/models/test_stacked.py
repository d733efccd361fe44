"""A decoder with a stack gives the bits of one without; which decoders have a stack, and of how many layers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.implementation import Implementation, compiling_for
from tests.models.test_decoder import BASE, VARIANTS, random_decoder
from tokenswift_jax.checkpoint import load_decoder
from tokenswift_jax.hardware.steps import decoder_shapes
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask, next_rows
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.models import stacked as module
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.quantized import quantized
from tokenswift_jax.models.stacked import DEEP, Groups, groups_of, stacked

LAYERS, GROUPS = 5, Groups(2, 2)
WINDOWS = (3, None, 3, None, 1)


def decoders(name, windows=(None,) * LAYERS, change=lambda decoder: decoder):
    """A random decoder in float32 without a stack and with one: {form: (graph, parameters)}."""
    config = replace(model_config(BASE | VARIANTS[name][0] | {"num_hidden_layers": LAYERS}), sliding_windows=windows)

    def make():
        graph, params = nnx.split(random_decoder(config))
        return change(nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)))

    with jax.enable_x64(True):
        return config, {"apart": nnx.split(make()), "stack": nnx.split(stacked(make(), GROUPS))}


def extended(graph, params, cache):
    """A plain step, a tree's rows and a chunk of a prompt over a cache that has content."""
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 40, (2, 6)), jnp.int32)
    lengths, mask = (
        jnp.asarray([5, 0], jnp.int32),
        jnp.broadcast_to(jnp.eye(6, dtype=bool), (2, 6, 6)).at[:, :, 0].set(True),
    )
    model = nnx.merge(graph, params)
    depths = jnp.asarray([[0, 1, 1, 1, 1, 1]], jnp.int32)
    tree = RowBatch(tokens, lengths[:, None] + depths, lengths, TreeMask(mask))
    one = RowBatch(tokens[:, :1], lengths[:, None], lengths, TreeMask(mask[:, :1, :1]))
    rows = [forward_rows(model, batch, cache) for batch in (one, tree, next_rows(tokens, lengths))]
    return rows, model.logits(rows[1][0].hidden)


def test_a_stack_changes_no_bit():
    config, forms = decoders("tied, head norms, one window a layer", WINDOWS, joined)
    cache = empty_cache(config, 2, 512, jnp.dtype(jnp.float32))
    rng = np.random.default_rng(6)
    keys, values = (jnp.asarray(rng.normal(size=cache.keys.shape), jnp.float32) for _ in range(2))
    cache = replace(cache, keys=keys, values=values)
    found = {form: jax.jit(extended, static_argnums=0)(*model, cache) for form, model in forms.items()}
    for got, want in zip(*map(jax.tree.leaves, (found["stack"], found["apart"])), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isfinite(np.asarray(found["apart"][1])).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_stack_rounds_as_its_layers_do(kind):
    """Leaf by leaf: the stack of the rounded layers is the rounded stack."""
    _, forms = decoders("biases, untied")
    apart, stack = (quantized(nnx.merge(*forms[form]), kind, backbone=True) for form in ("apart", "stack"))
    found, wanted = (jax.tree.leaves(nnx.split(decoder)[1]) for decoder in (stack, stacked(apart, GROUPS)))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@given(st.lists(st.sampled_from([None, None, 4]), max_size=90), st.integers(0, 40), st.integers(1, 12))
def test_groups_fit_their_layers(windows, deep, least):
    layers, groups = len(windows), groups_of(windows, deep, least)
    if groups is None:
        starts = [size for size in range(least, layers) if 2 * size < layers]
        assert layers <= deep or not any(windows[:size] == windows[size : 2 * size] for size in starts)
        return
    assert groups.count > 1
    assert groups.size >= least
    assert layers - groups.count * groups.size > 0
    for index in range(groups.count * groups.size):
        assert windows[index] == windows[index % groups.size]


@pytest.mark.parametrize(("layers", "kept"), [(33, 9), (48, 12), (64, 10), (80, 14), (126, 14)])
def test_a_deep_program_contains_few_layers(layers, kept):
    groups = groups_of((None,) * layers)
    assert groups is not None
    assert layers - (groups.count - 1) * groups.size == kept
    assert groups_of((None,) * DEEP) is None


def test_a_deep_model_has_a_stack_where_that_costs_nothing(monkeypatch):
    config = replace(model_config(BASE | {"num_hidden_layers": 40}), num_draft_heads=0)
    ways: list[tuple[Implementation, int]] = [("reference", 0), ("gpu", 0), ("tpu", 4)]
    for way, groups in ways:
        with compiling_for(way):
            _, params = decoder_shapes(config, "float32", False)
        leaves = {path[0]: leaf.shape for path, leaf in nnx.to_flat_state(params) if path[-2:] == ("q_proj", "kernel")}
        assert leaves == {"layers": (24, 48)} | ({"stack": (groups, 24, 48)} if groups else {})
    monkeypatch.setattr(module, "groups_of", lambda windows: Groups(2, 1))
    with compiling_for("tpu"):
        counts = [
            {path[0] for path, _ in nnx.to_flat_state(load_decoder(DEMO_MODEL, stack=stack)[2])}
            for stack in (True, False)
        ]
    assert counts[0] - counts[1] == {"stack"}
