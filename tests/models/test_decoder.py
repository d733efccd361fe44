"""The whole decoder and its draft heads in float64 against NumPy float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder as oracle
import pytest
from flax import nnx

from tokenswift_jax.checkpoint import names, state_tensors
from tokenswift_jax.checkpoint.load import abstract_decoder
from tokenswift_jax.models.attention import causal_attention
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.heads import DraftHeads
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.layers import Linear, RMSNorm, wide_dtype

YARN = {"kind": "yarn", "factor": 4.0, "original": 16}
BASE = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "medusa_heads": 3,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
VARIANTS: dict[str, tuple[dict, tuple[int | None, ...]]] = {
    "biases, untied": ({"attention_bias": True, "mlp_bias": True}, (None, None, None)),
    "tied, head norms, one window a layer": (
        {"model_type": "qwen3", "tie_word_embeddings": True},
        (5, None, 1),
    ),
    "medusa heads": ({"tokenswift": {"num_heads": 3, "head_type": "medusa"}}, (None, None, None)),
    "sequential heads": ({"tokenswift": {"num_heads": 3, "head_type": "sequential"}}, (None, None, None)),
}
TOKENS = 24


def random_decoder(config: ModelConfig) -> Decoder:
    """A float64 decoder with every parameter random, gains and biases included."""
    graph, state = nnx.split(abstract_decoder(config, jnp.dtype(jnp.float64)))
    rng = np.random.default_rng(1)
    drawn = []
    for path, param in nnx.to_flat_state(state):
        gain = path[-1] == "scale"
        values = rng.uniform(0.5, 1.5, param.shape) if gain else rng.normal(0, 0.3, param.shape)
        drawn.append((path, param.replace(jnp.asarray(values, jnp.float64))))
    return nnx.merge(graph, nnx.from_flat_state(drawn))


def compute(model, ids, positions):
    """Hidden states, logits and draft logits of whole sequences; past a text's end comes token 0."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, ids, positions):
        model = nnx.merge(graph, state)
        hidden, _, _ = model.hidden(ids, positions, causal_attention(model.config), None)
        padded = jnp.pad(ids, ((0, 0), (0, model.config.num_draft_heads)))
        following = jnp.stack([padded[:, 1 + i : 1 + i + ids.shape[1]] for i in range(3)], axis=-1)
        return hidden, model.logits(hidden), model.draft_logits(hidden, following)

    return run(state, ids, positions)


@pytest.mark.parametrize("name", VARIANTS)
def test_decoder_and_heads_equal_the_oracle(name):
    fields, windows = VARIANTS[name]
    rng = np.random.default_rng(2)
    ids, positions = rng.integers(0, 40, TOKENS), np.sort(rng.choice(60, TOKENS, replace=False))
    with jax.enable_x64(True):
        config = replace(model_config(BASE | fields), sliding_windows=windows)
        model = random_decoder(config)
        weights = {tensor.name: tensor.values() for tensor in state_tensors(nnx.split(model)[1])}
        outputs = compute(model, jnp.asarray(ids, jnp.int32)[None], jnp.asarray(positions, jnp.int32)[None])
        actual = [np.asarray(values)[0] for values in outputs]
    expected_hidden = oracle.hidden_states(
        weights, ids, positions, heads=6, kv_heads=2, eps=1e-5, theta=100.0, scaling=YARN, windows=windows
    )
    if config.draft_head_type == "sequential":
        drafts = oracle.sequential_draft_logits(weights, expected_hidden, ids, 1e-5, 3)
        actual[2] = np.where(np.isnan(drafts), np.nan, actual[2])
        assert np.isfinite(drafts[: TOKENS - 3]).all()
    elif config.draft_head_type == "medusa":
        drafts = oracle.medusa_draft_logits(weights, expected_hidden, 1e-5, 3)
    else:
        drafts = oracle.draft_logits(weights, expected_hidden, 1e-5, 3)
    expected = [expected_hidden, oracle.logits(weights, expected_hidden, 1e-5), drafts]
    assert actual[2].shape == (TOKENS, 3, 40)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)  # float64, some thousand operations deep


def test_a_batch_row_equals_the_row_alone():
    with jax.enable_x64(True):
        config = model_config(BASE)
        model = random_decoder(config)
        ids = jnp.asarray(np.random.default_rng(3).integers(0, 40, (2, 9)), jnp.int32)
        positions = jnp.asarray([np.arange(9), 20 + np.arange(9)], jnp.int32)
        both, _, _ = compute(model, ids, positions)
        alone, _, _ = compute(model, ids[1:], positions[1:])
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rms_norm_takes_its_mean_in_float32(dtype):
    x = np.random.default_rng(4).normal(0, 30, (5, 16)).astype(jnp.dtype(dtype))
    gain = np.linspace(0.5, 2, 16).astype(jnp.dtype(dtype))
    norm = RMSNorm(16, eps=1e-3, dtype=jnp.dtype(dtype))
    norm.scale[...] = jnp.asarray(gain)
    actual = norm(jnp.asarray(x))
    assert actual.dtype == jnp.dtype(dtype)
    expected = oracle.rms_norm(x.astype(np.float64), gain.astype(np.float64), 1e-3)
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=2 * ulp)  # rounded twice: norm, product


def test_linear_is_the_transpose_of_hf_layout_with_bias():
    layer = Linear(3, 2, bias=True, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray([[1, 2], [3, 4], [5, 6]], jnp.float32)
    layer.bias = nnx.Param(jnp.asarray([10, 20], jnp.float32))
    np.testing.assert_array_equal(layer(jnp.asarray([[[1, 10, 100]]], jnp.float32)), [[[541, 662]]])


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32")])
def test_wide_dtype(dtype, wide):
    assert wide_dtype(jnp.dtype(dtype)) == jnp.dtype(wide)
    with jax.enable_x64(True):
        assert wide_dtype(jnp.dtype("float64")) == jnp.dtype("float64")


@pytest.mark.parametrize("kind", ["chained", "sequential"])
def test_new_draft_heads_repeat_their_input(kind):
    config = replace(model_config(BASE), draft_head_type=kind)
    heads = DraftHeads(config, jnp.dtype(jnp.float32), nnx.Rngs(0))
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=(1, 2, 24)).astype(np.float32)
    embedded = None if kind == "chained" else jnp.asarray(rng.normal(size=(1, 2, 3, 24)), jnp.float32)
    outputs = np.asarray(heads(jnp.asarray(hidden), embedded=embedded))
    expected = oracle.rms_norm(hidden.astype(np.float64), np.ones(24), 1e-5)
    for head in range(3):
        np.testing.assert_allclose(outputs[:, :, head], expected, rtol=1e-6)  # two float32 roundings


@pytest.mark.parametrize("kind", ["chained", "sequential"])
def test_heads_stepped_one_by_one_are_the_heads_at_once(kind):
    """A tree of drafts steps head by head, training takes all: both are one computation."""
    with jax.enable_x64(True):
        model = random_decoder(replace(model_config(BASE), draft_head_type=kind))
        rng = np.random.default_rng(6)
        start = hidden = jnp.asarray(rng.normal(size=(2, 5, 24)))
        following = jnp.asarray(rng.integers(0, 40, (2, 5, 3)), jnp.int32)
        outputs = []
        for head in range(3):
            embedded = model.embed(following[..., head]) if kind == "sequential" else None
            hidden, output = model.draft_heads.step(head, hidden, embedded)
            outputs.append(output)
        together = model.draft_outputs(start, following)
    np.testing.assert_array_equal(together, np.stack(outputs, axis=-2))


def test_sequential_heads_want_the_following_tokens():
    model = abstract_decoder(replace(model_config(BASE), draft_head_type="sequential"), jnp.float32)
    hidden = jnp.zeros((2, 24), jnp.float32)
    for following in (None, jnp.zeros((2, 2), jnp.int32), jnp.zeros((1, 3), jnp.int32)):
        with pytest.raises(ValueError, match=r"of shape \(2, 3\)"):
            model.draft_outputs(hidden, following)


def test_parameter_paths_and_hf_names_are_one_to_one():
    for fields, _ in VARIANTS.values():
        config = model_config(BASE | fields)
        state = nnx.split(abstract_decoder(config, jnp.float32))[1]
        paths = [path for path, _ in nnx.to_flat_state(state)]
        hf = [names.hf_name(path) for path in paths]
        assert len(set(hf)) == len(paths)
        assert [names.parameter_path(name) for name in hf] == paths
    assert ("layers", 0, "self_attn", "q_proj", "kernel") in paths
    sequential = {name.removeprefix("medusa_layers.1.") for name in hf if name.startswith("medusa_layers.1.")}
    projections, norms = ("gate_proj", "up_proj", "down_proj"), ("input", "token", "post")
    assert sequential == {f"{name}.weight" for name in (*projections, *(f"{norm}_layernorm" for norm in norms))}
    assert names.hf_name(("layers", 11, "self_attn", "q_proj", "kernel")) == "model.layers.11.self_attn.q_proj.weight"
    assert names.parameter_path("model.layers.3.self_attn.rotary_emb.inv_freq") is None
