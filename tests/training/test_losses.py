"""Losses of packed rows against a plain computation with every logit at hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.small_models import random_model
from tests.tiny import tiny_config, tiny_model
from tokenswift_jax.models.projected import Apart
from tokenswift_jax.models.rope import Rotation
from tokenswift_jax.training.attention import packed_attention
from tokenswift_jax.training.forward import hidden_states
from tokenswift_jax.training.losses import count, learns_here, loss_sums
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.windows import Batch

VOCAB, LENGTH, HEADS = 24, 30, 3


def packed(rng: np.random.Generator) -> Batch:
    """Two rows: three documents and padding; one document whose positions jump."""
    tokens = rng.integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
    positions, segments = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), np.int32)
    for number, (start, stop) in enumerate(((0, 11), (11, 16), (16, 27)), 1):
        positions[0, start:stop] = np.arange(stop - start)
        segments[0, start:stop] = number
    positions[1] = np.arange(LENGTH) + 40 * (np.arange(LENGTH) >= 9)
    segments[1] = 1
    return Batch(tokens, positions, segments)


def plain_losses(model, hidden: np.ndarray, batch: Batch, settings: TrainingSettings, offset: int):
    """Sums and counts, position by position in float64."""
    following = np.zeros((*batch.tokens.shape, HEADS), np.int32)
    for head in range(HEADS):
        following[:, : LENGTH - 1 - head, head] = batch.tokens[:, 1 + head :]
    target = np.asarray(model.logits(hidden), np.float64)
    guesses = np.asarray(
        model.draft_logits(hidden, jnp.asarray(following) if model.config.draft_head_type == "sequential" else None),
        np.float64,
    )

    def log_softmax(x):
        return x - np.log(np.exp(x - x.max()).sum()) - x.max()

    base, heads = 0.0, np.zeros(HEADS)
    counts = np.zeros(1 + HEADS, int)
    for row in range(2):
        for at in range(LENGTH):

            def same(ahead: int, row=row, at=at) -> bool:
                inside = at + ahead < LENGTH and batch.segments[row, at] > 0
                return (
                    inside
                    and batch.segments[row, at + ahead] == batch.segments[row, at]
                    and batch.positions[row, at + ahead] - batch.positions[row, at] == ahead
                )

            if same(1):
                base -= log_softmax(target[row, at])[batch.tokens[row, at + 1]]
                counts[0] += 1
            if at % settings.head_stride != offset:
                continue
            for head in range(HEADS):
                if not same(head + 2):
                    continue
                counts[1 + head] += 1
                own = guesses[row, at, head]
                text = -log_softmax(own)[batch.tokens[row, at + head + 2]]
                heat = settings.distill_temperature
                aims = np.exp(log_softmax(target[row, at + head + 1] / heat))
                taught = -(aims * log_softmax(own / heat)).sum() * heat**2
                heads[head] += (1 - settings.distill_weight) * text + settings.distill_weight * taught
    return base, heads, counts


@pytest.mark.parametrize("head_type", ["chained", "sequential"])
@pytest.mark.parametrize(
    ("stride", "chunk", "weight", "heat"), [(1, 512, 0.0, 1.0), (1, 7, 1.0, 2.0), (4, 10, 0.3, 1.5)]
)
def test_sums_are_those_of_a_plain_loop(head_type, stride, chunk, weight, heat):
    rng = np.random.default_rng(0)
    model = random_model(VOCAB, layers=2, head_type=head_type, dtype=np.float32)
    decoder = nnx.merge(model.graphdef, model.params)
    batch = packed(rng)
    settings = TrainingSettings(
        what="all",
        head_type=head_type,
        max_length=LENGTH,
        head_stride=stride,
        loss_chunk=chunk,
        distill_weight=weight,
        distill_temperature=heat,
    )
    offset = stride // 2
    hidden = hidden_states(decoder, batch, "none")
    sums = loss_sums(decoder, hidden, hidden, batch, jnp.int32(offset), settings)
    counts = count(batch, HEADS, jnp.int32(offset), stride)
    base, heads, expected = plain_losses(decoder, hidden, batch, settings, offset)
    # Sums of up to 60 float32 terms of a few nats each: 60 * 4 * 2^-24, with room for the softmax's own rounding.
    np.testing.assert_allclose(float(sums.base), base, rtol=2e-5)
    np.testing.assert_allclose(np.asarray(sums.heads), heads, rtol=2e-5)
    assert int(counts.base) == expected[0]
    assert np.asarray(counts.heads).tolist() == expected[1:].tolist()
    assert expected.min() > 0


def test_rows_that_cross_documents_or_jump_teach_nothing():
    batch = packed(np.random.default_rng(1))
    base, heads = (np.asarray(x) for x in learns_here(batch, HEADS, jnp.int32(0), 1))
    assert not base[0, [10, 15, 26, 27, 28, 29]].any()
    assert base[0, :10].all()
    assert not base[1, 8], "the next position lies 41 further on"
    assert base[1, 9]
    assert heads[0, 0, :9].all()
    assert not heads[0, 0, 9:11].any()


def test_memory_does_not_grow_by_logits():
    """A longer row costs hidden states, not logits of the vocabulary."""
    model = tiny_model(tiny_config(vocab_size=2048))
    graph = model.graphdef
    settings = TrainingSettings(what="all", head_type="chained", max_length=64, loss_chunk=64, distill_weight=1.0)

    def temporaries(length: int) -> int:
        rows = np.arange(length, dtype=np.int32)[None]
        batch = Batch(rows % 512, rows, np.ones_like(rows))

        def loss(params, hidden):
            sums = loss_sums(nnx.merge(graph, params), hidden, hidden, batch, jnp.int32(0), settings)
            return sums.base + sums.heads.sum()

        hidden = jax.ShapeDtypeStruct((1, length, model.config.hidden_size), jnp.float32)
        memory = jax.jit(jax.grad(loss)).lower(model.params, hidden).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    grown = temporaries(1024) - temporaries(256)
    one_logit_a_position = 768 * 2048 * 4
    assert grown < one_logit_a_position / 8


@pytest.mark.parametrize("windows", [None, (3, None)])
def test_a_packed_document_s_hidden_states_are_its_own(windows):
    rng = np.random.default_rng(2)
    model = random_model(VOCAB, layers=2, dtype=np.float32)
    decoder = nnx.merge(model.graphdef, model.params)
    if windows:
        decoder.config = replace(decoder.config, sliding_windows=windows)
    batch = packed(rng)
    together = np.asarray(hidden_states(decoder, batch, "none"))
    for start, stop in ((0, 11), (11, 16), (16, 27)):
        alone = Batch(*(x[:1, start:stop] for x in batch))
        own = np.asarray(hidden_states(decoder, alone, "none"))
        # The same sums over other block shapes.
        np.testing.assert_allclose(together[:1, start:stop], own, atol=2e-5)


@pytest.mark.parametrize("block", [4, 7, 512])
def test_blocks_of_queries_change_nothing(block):
    rng = np.random.default_rng(3)
    config = random_model(VOCAB, layers=1, dtype=np.float32).config
    batch = packed(rng)
    draw = [jnp.asarray(rng.normal(size=(2, LENGTH, n, 8)), jnp.float32) for n in (4, 2, 2)]
    attend = packed_attention(batch.positions, batch.segments, block)
    still = Rotation(*(jnp.full((2, LENGTH, 4), angle, jnp.float32) for angle in (1, 0)))
    mixed = np.asarray(attend(0, Apart(*draw), still, config.attention(0), None)[0], np.float64)
    queries, keys, values = (np.asarray(x, np.float64) for x in draw)
    for row in range(2):
        for at in range(LENGTH):
            seen = [j for j in range(at + 1) if batch.segments[row, j] == batch.segments[row, at]]
            for head in range(4):
                scores = keys[row, seen, head // 2] @ queries[row, at, head] / 8**0.5
                weights = np.exp(scores - scores.max())
                expected = weights @ values[row, seen, head // 2] / weights.sum()
                np.testing.assert_allclose(mixed[row, at, head], expected, atol=1e-5)  # float32 against float64


@pytest.mark.parametrize("remat", ["layers", "offload"])
def test_what_layers_keep_changes_no_gradient(remat):
    model = random_model(VOCAB, layers=2, dtype=np.float32)
    batch = packed(np.random.default_rng(4))

    def loss(params, kept):
        hidden = hidden_states(nnx.merge(model.graphdef, params), batch, kept)
        return jnp.sum(hidden * hidden)

    plain = jax.jit(jax.grad(loss), static_argnums=1)(model.params, "none")
    kept = jax.jit(jax.grad(loss), static_argnums=1)(model.params, remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kept), strict=True):
        # Fused otherwise when computed again: the last bits differ.
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)
