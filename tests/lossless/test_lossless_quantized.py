"""Drafts made with quantised weights: the tokens are those of plain decoding, and most drafts are still right."""

import functools
from dataclasses import replace

import jax
import pytest
import small_models
from decoded import assert_same, decode
from flax import nnx
from speculations import SPECULATIONS

from tokenswift_jax.errors import UserError
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.draft_model import with_draft_model
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

TOKENS = 300
SAMPLING = SamplingConfig(min_p=0.05, repetition_penalty=1.1, penalty_window=24, seed=4)
PROMPT = [5, 17, 3]


@functools.cache
def model():
    """With weights bound to their device, as those of a checkpoint are."""
    made = small_models.successor_model(layers=1)
    return replace(made, params=jax.device_put(made.params, jax.devices()[0]))


@functools.cache
def plain():
    return decode(model(), PROMPT, SAMPLING, SPECULATIONS["plain"], max_new_tokens=TOKENS)


@pytest.mark.parametrize(("mode", "kind"), [("partial", "int8"), ("fused", "int4"), ("selfspec", "int4")])
def test_the_text_is_plain_decodings(mode, kind):
    chosen = replace(SPECULATIONS[mode], draft_weights=kind)
    text = decode(model(), PROMPT, SAMPLING, chosen, max_new_tokens=TOKENS)
    assert_same(text.tokens, plain().tokens)
    # Four bits move a draft's score by a few percent: guesses of one token in three right would be another model's.
    assert text.accepted_per_depth[0] > TOKENS / 10


@pytest.mark.parametrize("mode", ["partial", "selfspec"])
def test_a_draft_cache_of_small_numbers(mode):
    """Over selections (64 slots), and beside weights of small numbers."""
    chosen = replace(SPECULATIONS[mode], draft_cache_dtype="int8", draft_weights="int8")
    text = decode(model(), PROMPT, SAMPLING, chosen, max_new_tokens=TOKENS)
    assert_same(text.tokens, plain().tokens)
    assert text.accepted_per_depth[0] > TOKENS / 10


@pytest.mark.parametrize(("schedule", "backbone"), [("partial", True), ("fused", False)])
def test_what_drafts_do_not_read_is_not_quantised(schedule, backbone):
    chosen = SpeculationConfig(mode="tokenswift", schedule=schedule, draft_weights="int8")
    named = speculative_plans(model().config, chosen, features_of(SAMPLING), "cpu")
    drafting, params = with_draft_model(model(), named, "int8")
    flat = {path: leaf for path, leaf in nnx.to_flat_state(params)}
    narrow = {path[0] for path, leaf in flat.items() if leaf.dtype == "int8"}
    assert narrow == {"lm_head", "draft_heads", *(["layers"] if backbone else [])}
    own = dict(nnx.to_flat_state(model().params))
    assert flat["embed_tokens",][...] is own["embed_tokens",][...], "shared, not copied"
    assert all(entry.plan.draft_graph is not None for entry in drafting)
    if backbone:
        assert _bytes(params) < 0.5 * _bytes(model().params)


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_an_unknown_kind_and_modes_without_a_use_for_it():
    with pytest.raises(UserError, match="draft_weights 'int3' is unknown; known: int8, int4"):
        SpeculationConfig(draft_weights="int3")
    with pytest.raises(UserError, match="mode ngram has no use for draft_weights; leave out one or the other"):
        SpeculationConfig(mode="ngram", draft_weights="int8")
    with pytest.raises(UserError, match="draft_cache_dtype 'int4' is unknown; known: int8"):
        SpeculationConfig(draft_cache_dtype="int4")
    with pytest.raises(UserError, match="mode medusa has no use for draft_cache_dtype; leave out one or the other"):
        SpeculationConfig(mode="medusa", draft_cache_dtype="int8")
    with pytest.raises(UserError, match="draft_block reads the full cache in place"):
        SpeculationConfig(draft_cache_dtype="int8", draft_block=64)
