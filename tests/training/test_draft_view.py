"""Hidden states over the draft cache, all rows at once, against the draft cache that decoding keeps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tokenswift_jax as ts
from tests.small_models import random_model
from tokenswift_jax.kv.dense import empty_cache
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.training.draft_view import draft_view_states, prompt_rows
from tokenswift_jax.training.forward import hidden_states
from tokenswift_jax.training.prediction import Continuations, Replay
from tokenswift_jax.training.windows import Batch

VOCAB, LENGTH, SIZE, SINKS = 24, 64, 20, 3


def decoder_of(windows):
    model = random_model(VOCAB, layers=2, dtype=np.float32)
    decoder = nnx.merge(model.graphdef, model.params)
    if windows:
        decoder.config = replace(decoder.config, sliding_windows=windows)
    return decoder


def one_document(seed: int) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (1, LENGTH)).astype(np.int32)
    rows = np.arange(LENGTH, dtype=np.int32)[None]
    return Batch(tokens, rows, np.ones_like(rows))


def decoded(decoder, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Token by token through both caches: the draft forward's hidden states [length, size]."""
    config, shape = decoder.config, DraftCacheShape(SIZE, SINKS, 1, None)
    full = empty_cache(config, 1, 128, jnp.float32)
    draft = shape.empty(config, 1, jnp.float32)
    own, out = TreeMask(jnp.ones((1, 1, 1), bool)), []

    @jax.jit
    def both(row, at, full, draft):
        rows, full = forward_rows(decoder, RowBatch(row, at[:, None], at, own), full)
        seen, _ = forward_rows(decoder, *shape.view(draft, full, row[:, 0], at, jnp.zeros_like(at), config))
        return rows, full, seen.hidden[0, 0]

    begin = jax.jit(lambda draft, full, at, query: shape.rebuild(draft, full, at + 1, query, config))
    keep = jax.jit(lambda d, full, rows, at: shape.advance(d, full, rows.new, at, at + 1, rows.query, config))
    for n in range(LENGTH):
        at = jnp.full((1,), n, jnp.int32)
        rows, full, hidden = both(jnp.asarray(tokens[:, n : n + 1]), at, full, draft)
        out.append(np.asarray(hidden))
        if n + 1 == prompt:
            draft = begin(draft, full, at, rows.query)
        elif n + 1 > prompt:
            draft = keep(draft, full, rows, at)
    return np.stack(out)


@pytest.mark.parametrize(("prompt", "windows"), [(9, None), (33, None), (62, None), (30, (12, None))])
def test_rows_see_what_decoding_would_show_them(prompt, windows):
    decoder, batch = decoder_of(windows), one_document(prompt)
    view = jax.jit(lambda prompt: draft_view_states(decoder, batch, prompt, SIZE, SINKS))
    full, seen = view(jnp.int32(prompt))
    expected = decoded(decoder, batch.tokens, prompt)
    # float32 sums in another order; a wrong choice of positions moves a hidden state by some 0.1.
    np.testing.assert_allclose(np.asarray(seen[0, prompt:]), expected[prompt:], atol=2e-4)
    np.testing.assert_allclose(np.asarray(full), np.asarray(hidden_states(decoder, batch, "none")), atol=1e-5)
    looked_through = max(prompt, SIZE + 1)
    assert np.abs(np.asarray(seen - full))[0, looked_through:].max() > 1e-2, "the draft cache hides something"


@pytest.mark.slow
@pytest.mark.long
def test_drafts_from_these_states_are_those_that_the_engine_accepts():
    """A real prompt that exceeds the draft cache, then greedy tokens of the demo until it would select again."""
    model, greedy = ts.load(), ts.SamplingConfig(temperature=0.0)
    text = (DEMO_MODEL / "README.md").read_text(encoding="utf-8")
    prompt = model.tokenizer(text[text.index("\n") :])["input_ids"][:96]
    asked = ts.SpeculationConfig("tokenswift", "partial", ngram_k=0, tree=(1, 2, 2, 2), draft_cache=40, draft_sinks=4)
    result = ts.generate(model, prompt, greedy, asked, max_new_tokens=36, ignore_eos=True)
    replay = Replay(model, Continuations(greedy, (tuple(prompt),), (tuple(result.token_ids),)))
    everything = replace(asked, draft_cache=256)
    blind = replay.predict(everything)

    tokens = np.asarray(replay.continuations.texts, np.int32)
    batch = Batch(tokens, np.arange(tokens.shape[1], dtype=np.int32)[None], np.ones_like(tokens))
    decoder = nnx.merge(model.graphdef, model.params)
    _, seen = jax.jit(lambda prompt: draft_view_states(decoder, batch, prompt, 40, 4))(jnp.int32(len(prompt)))
    replay.hidden = replay.hidden.at[:, : tokens.shape[1]].set(seen)
    found = replay.predict(everything)
    accepted = np.trim_zeros(result.accepted_per_position, "b")
    assert (found.iterations, list(found.accepted_per_position)) == (result.iterations, list(accepted))
    assert found != blind, "the draft cache hides something"


def test_before_the_first_selection_everything_is_seen():
    decoder, batch = decoder_of(None), one_document(0)
    full, seen = draft_view_states(decoder, batch, jnp.int32(40), SIZE, SINKS)
    np.testing.assert_allclose(np.asarray(seen[:, :40]), np.asarray(full[:, :40]), atol=1e-5)


def test_what_a_step_draws_depends_on_seed_and_step_alone():
    draws = {(seed, step): prompt_rows(seed, jnp.int32(step), LENGTH) for seed in (0, 1) for step in (0, 1, 2)}
    assert len({float(chance) for chance, _ in draws.values()}) == len(draws)
    assert all(1 <= int(prompt) < LENGTH for _, prompt in draws.values())
    again = prompt_rows(1, jnp.int32(2), LENGTH)
    assert tuple(map(float, again)) == tuple(map(float, draws[1, 2]))
