"""Backbone and draft heads against what the public reference program computed (../shared/golden)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder as oracle
from flax import nnx

from tests.golden import BOUND, arrays, checkpoint, each_checkpoint
from tokenswift_jax.checkpoint import load_decoder, open_checkpoint
from tokenswift_jax.models.attention import causal_attention
from tokenswift_jax.models.rope import inverse_frequencies

pytestmark = each_checkpoint


@cache
def computed(name, stretched):
    """Hidden states, normed hidden states, logits and draft logits of prompt + root, batch dimension dropped."""
    config, graph, state = load_decoder(checkpoint(name))

    @jax.jit
    def run(state, ids, positions):
        model = nnx.merge(graph, state)
        hidden, _, _ = model.hidden(ids, positions, causal_attention(config), None)
        return hidden, model.norm(hidden), model.logits(hidden), model.draft_logits(hidden)

    golden = arrays(name)
    ids = np.append(golden["input_ids"], golden["root_token"])
    positions = np.append(golden["stretch_position_ids"], 0) if stretched else np.arange(len(ids))
    outputs = run(state, jnp.asarray(ids, jnp.int32)[None], jnp.asarray(positions, jnp.int32)[None])
    return [np.asarray(values)[0] for values in outputs]


def test_prompt_logits_and_hidden_states(name):
    _, normed, logits, _ = computed(name, stretched=False)
    np.testing.assert_allclose(logits[:96], arrays(name)["prefill_logits"], rtol=0, atol=BOUND)
    np.testing.assert_allclose(normed[:96], arrays(name)["prefill_hidden"], rtol=0, atol=BOUND)


def test_root_and_draft_head_logits_over_the_full_cache(name):
    _, _, logits, drafts = computed(name, stretched=False)
    rows = np.concatenate([logits[96:], drafts[96]])
    np.testing.assert_allclose(rows, arrays(name)["draft96_logits"], rtol=0, atol=BOUND)
    np.testing.assert_allclose(logits[96], arrays(name)["root_full_logits"], rtol=0, atol=BOUND)


def test_inverse_frequencies_are_the_same_bits(name):
    config = open_checkpoint(checkpoint(name)).config
    actual, _ = inverse_frequencies(config.rope, config.head_dim, np.dtype("float32"))
    np.testing.assert_array_equal(actual, arrays(name)["rope_inv_freq"])


def test_stretched_positions(name):
    """Positions up to 5,795, far apart, against the reference and against float64 with the same float32 frequencies."""
    golden, logits = arrays(name), computed(name, stretched=True)[2][:96]
    stored = open_checkpoint(checkpoint(name))
    config = stored.config
    weights = {tensor.name: tensor.values().astype(np.float64) for tensor in stored.tensors.values()}
    scaling = {
        "llama2_yarn": {"kind": "yarn", "factor": 32.0, "original": 4096},
        "llama3_1": {"kind": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 8192},
    }[name]
    # angles are products in float32 in both programs
    turns = inverse_frequencies(config.rope, config.head_dim, np.dtype("float32"))[0]
    positions = golden["stretch_position_ids"].astype(np.float32)
    exact = oracle.hidden_states(
        weights,
        golden["input_ids"],
        positions,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        eps=config.rms_norm_eps,
        theta=config.rope.theta,
        scaling=scaling,
        windows=config.sliding_windows,
        inverse_frequencies=turns,
    )
    exact = oracle.logits(weights, exact, config.rms_norm_eps)
    np.testing.assert_allclose(logits, exact, rtol=0, atol=BOUND)
    # The reference's own rounding is 1.46e-4 away from float64 for llama2_yarn (ours 5e-5): no closer than that.
    bound = {"llama2_yarn": 2e-4, "llama3_1": BOUND}[name]
    np.testing.assert_allclose(logits, golden["stretch_logits"], rtol=0, atol=bound)
