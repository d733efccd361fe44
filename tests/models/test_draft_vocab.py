"""Draft vocabularies: the heads' scores are the LM head's columns, and checkpoints load with them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from checkpoint.checkpoints_made_here import copy, heads
from flax import nnx
from safetensors.numpy import save_file

from tokenswift_jax.checkpoint import load_decoder, state_tensors
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.draft_vocab import DraftVocab, parse_draft_vocab

IDS = [1, 4, 5, 17, 30, 47]


def test_scores_are_the_lm_heads_columns():
    model = small_models.with_draft_vocab(small_models.random_model(48), IDS)
    decoder = nnx.merge(model.graphdef, model.params)
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, model.config.hidden_size)), jnp.float32)
    everything = np.asarray(decoder.project(outputs))
    np.testing.assert_allclose(decoder.score_drafts(outputs), everything[..., IDS], rtol=1e-5, atol=1e-6)
    spread = np.asarray(decoder.project_drafts(outputs))
    np.testing.assert_allclose(spread[..., IDS], everything[..., IDS], rtol=1e-5, atol=1e-6)
    outside = np.setdiff1d(np.arange(48), IDS)
    assert (spread[..., outside] == -np.inf).all()
    decoder.draft_lm_head = None  # as in training
    np.testing.assert_allclose(decoder.score_drafts(outputs), everything[..., IDS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama3_1", "mistral"])
def test_a_checkpoint_has_the_ids_alone(tmp_path, family):
    """Loading copies the columns, also from tied embeddings; saving does not write them."""
    folder, tensors = copy(family, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    size = fields["hidden_size"]
    save_file(tensors | heads(size, count=1), folder / "model.safetensors", metadata={"format": "pt"})
    block = {"num_heads": 1, "head_type": "chained", "draft_vocab": IDS}
    (folder / "config.json").write_text(json.dumps(fields | {"tokenswift": block}))
    config, _, params = load_decoder(folder, "float32")
    assert config.draft_vocab == DraftVocab.of(IDS)
    flat = dict(nnx.to_flat_state(params))
    table = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    columns = table[IDS].astype(np.float32).T
    np.testing.assert_array_equal(flat[("draft_lm_head", "kernel")][...], columns)
    assert not any("draft_lm" in tensor.name for tensor in state_tensors(params))
    trained = dict(nnx.to_flat_state(load_decoder(folder, "float32", copies=False)[2]))
    assert ("draft_lm_head", "kernel") not in trained
    (folder / "config.json").write_text(json.dumps(fields | {"tokenswift": block | {"draft_vocab": [2, 1]}}))
    with pytest.raises(UserError, match="draft_vocab"):
        load_decoder(folder)


@pytest.mark.parametrize("value", [[], [3, 2], [2, 2], [0, 48], [-1], [True], "0", 5, [1.0]])
def test_another_form_is_refused(value):
    with pytest.raises(UserError, match="ascending token ids from 0 to 47"):
        parse_draft_vocab(value, 48)
