"""Noise is a function of seed, sequence and position alone, and it draws from the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tokenswift_jax.errors import UserError
from tokenswift_jax.sample.gumbel import gumbel_noise, row_keys

VOCAB = 101  # not a multiple of any vector width
noise_of = jax.jit(gumbel_noise, static_argnums=2)


def _sequences(*values):
    return jnp.asarray(values, jnp.int32)


def _definition(seed, sequence, position, vocab=VOCAB):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sequence), position)
    return np.asarray(jax.random.gumbel(key, (vocab,), jnp.float32))


def test_equals_its_definition():
    keys = row_keys(2**32 - 1, _sequences(0, 5))
    positions = jnp.asarray([[7, 8, 100_000], [7, 9, 3]], jnp.int32)
    noise = np.asarray(noise_of(keys, positions, VOCAB))
    assert noise.dtype == np.float32
    for row, sequence in enumerate((0, 5)):
        for draw in range(3):
            expected = _definition(2**32 - 1, sequence, positions[row, draw])
            np.testing.assert_array_equal(noise[row, draw], expected)


def test_values_recorded_under_jax_0_10_and_0_12():
    """A text belongs to its seed across versions of jax; a last-digit change of log is all that is let through."""
    keys = row_keys(2**32 - 1, _sequences(0, 5))
    assert keys.tolist() == [[2973345818, 897673333], [1579579627, 15774026]]
    noise = noise_of(keys, jnp.asarray([[7], [7]], jnp.int32), 4)
    np.testing.assert_allclose(noise[0, 0], [2.5514712, -0.73904973, -0.07805577, 0.90205634], rtol=1e-6)


@pytest.mark.parametrize("vocab", [VOCAB, 2048])
def test_same_bits_in_any_batch_and_any_number_of_draws(vocab):
    keys = row_keys(11, _sequences(3, 1, 2))
    positions = jnp.asarray(np.random.default_rng(0).integers(0, 10**6, (3, 7)), jnp.int32)
    together = np.asarray(noise_of(keys, positions, vocab))
    for row in range(3):
        alone = row_keys(11, _sequences((3, 1, 2)[row]))
        for draw in range(7):
            single = noise_of(alone, positions[row : row + 1, draw : draw + 1], vocab)
            np.testing.assert_array_equal(together[row, draw], single[0, 0])


def test_same_bits_inside_a_while_loop_and_under_vmap():
    keys = row_keys(5, _sequences(0))
    expected = np.asarray(noise_of(keys, jnp.asarray([[9]], jnp.int32), VOCAB))

    def body(state):
        position, _ = state
        return position + 1, gumbel_noise(keys, position[None, None], VOCAB)

    start = (jnp.int32(0), jnp.zeros((1, 1, VOCAB), jnp.float32))
    _, looped = jax.jit(lambda state: jax.lax.while_loop(lambda s: s[0] < 10, body, state))(start)
    np.testing.assert_array_equal(looped, expected)
    mapped = jax.vmap(lambda position: gumbel_noise(keys, position, VOCAB))(jnp.asarray([[[3]], [[9]]], jnp.int32))
    np.testing.assert_array_equal(mapped[1], expected)


def test_same_bits_with_x64():
    keys = row_keys(7, _sequences(2))
    expected = np.asarray(noise_of(keys, jnp.asarray([[4]], jnp.int32), VOCAB))
    with jax.enable_x64(True):
        noise = gumbel_noise(row_keys(7, _sequences(2)), jnp.asarray([[4]], jnp.int32), VOCAB)
        assert noise.dtype == jnp.float32
        np.testing.assert_array_equal(noise, expected)


def test_seed_sequence_and_position_all_matter():
    vectors = {
        (seed, sequence, position): _definition(seed, sequence, position).tobytes()
        for seed in (0, 1)
        for sequence in (0, 1)
        for position in (0, 1)
    }
    assert len(set(vectors.values())) == len(vectors)


def test_argmax_draws_from_the_softmax():
    """Chi-square over 40,000 positions; the seed is fixed, so the outcome is too."""
    probabilities = np.array([0.5, 0.25, 0.15, 0.07, 0.02, 0.01])
    positions = jnp.arange(40_000, dtype=jnp.int32)[None]
    noise = noise_of(row_keys(123, _sequences(0)), positions, len(probabilities))[0]
    tokens = np.argmax(np.asarray(noise, np.float64) + np.log(probabilities), axis=-1)
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert stats.chisquare(counts, probabilities * len(tokens)).pvalue > 1e-3


def test_neighbouring_positions_are_independent():
    positions = jnp.arange(40_000, dtype=jnp.int32)[None]
    tokens = np.argmax(np.asarray(noise_of(row_keys(321, _sequences(0)), positions, 3)[0]), axis=-1)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]


def test_refuses_threefry_that_is_not_partitionable():
    keys = row_keys(0, _sequences(0))
    with jax.threefry_partitionable(False), pytest.raises(UserError, match="unset it"):
        gumbel_noise(keys, jnp.zeros((1, 1), jnp.int32), VOCAB)
