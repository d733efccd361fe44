"""Levels of the heads' tree against the heads asked path by path, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from flax import nnx

from tests.engine_fixture import settings_of
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.candidates import DraftSampler, head_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec

VOCAB, WINDOW, THETA = 24, 4, 1.7
SAMPLING = SamplingConfig(temperature=0.8, repetition_penalty=THETA, penalty_window=WINDOW)


@pytest.mark.parametrize("backbone", [False, True], ids=["fused", "partial"])
@pytest.mark.parametrize("head_type", ["chained", "sequential"])
def test_every_node_is_what_the_heads_say_of_its_path(head_type, backbone):
    """Tokens and scores of all nodes, for 3 roots at once: a sequential head sees the path, and so does its penalty;
    a chained one, and the penalty of its guess, know the root alone."""
    model = small_models.random_model(VOCAB, head_type=head_type, spread=4.0)
    decoder = nnx.merge(model.graphdef, model.params)
    sequential = head_type == "sequential"
    widths = (2, 2, 3, 2)[: 3 + backbone]
    shape = TreeSpec(widths, per_parent=sequential)
    rng = np.random.default_rng(0)
    texts = rng.integers(0, VOCAB, (3, 12))
    lengths = np.array([12, 7, 9])
    hidden = rng.normal(size=(3, model.config.hidden_size)).astype(np.float32)
    noise = rng.gumbel(size=(3, len(widths), VOCAB)).astype(np.float32)
    roots = texts[np.arange(3), lengths - 1]

    @jax.jit
    def levels_of(hidden):
        ranking = DraftSampler(
            next_position=jnp.asarray(lengths, jnp.int32),
            last_positions=penalty.last_positions(
                jnp.asarray(texts, jnp.int32), jnp.asarray(lengths, jnp.int32), VOCAB
            ),
            noise=jnp.asarray(noise),
            settings=settings_of(SAMPLING, vocab=VOCAB, batch=3),
            features=features_of(SAMPLING),
        )
        return head_levels(decoder, shape, hidden, jnp.asarray(roots, jnp.int32), ranking, backbone=backbone)

    levels = levels_of(jnp.asarray(hidden))

    @jax.jit
    def logits_of(state, following):
        """The backbone's and all heads' logits of a hidden state, [heads + 1, vocab]."""
        return jnp.concatenate([decoder.logits(state)[None], decoder.draft_logits(state, following)])

    def descend(row, path, parent, score):
        depth = len(path)
        if depth == len(widths):
            return
        seen = ([] if backbone else [int(roots[row])]) + path
        following = jnp.asarray((seen + [0] * 3)[:3], jnp.int32)
        scores = np.asarray(logits_of(hidden[row], following), np.float64)[depth + (not backbone)]
        text = texts[row, : lengths[row]].tolist() + (path if sequential else [])
        for token in set(text[-WINDOW:]):
            scores[token] *= THETA if scores[token] < 0 else 1 / THETA
        perturbed = scores / 0.8 + noise[row, depth]
        shares = np.exp(perturbed) / np.exp(perturbed).sum()
        for rank, token in enumerate(np.argsort(-perturbed)[: widths[depth]].tolist()):
            node = parent * widths[depth] + rank
            level = levels[depth]
            assert (int(level.tokens[row, node]), int(level.parents[row, node])) == (token, parent)
            # float32 against float64; a score is a product of up to four shares
            np.testing.assert_allclose(level.score[row, node], score * shares[token], rtol=1e-3)
            descend(row, [*path, token], node, score * shares[token])

    for row in range(3):
        descend(row, [], 0, 1.0)
