"""Drafting with the target's noise and without it: one text, and very different luck."""

import small_models
from decoded import assert_same, decode

from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig

TOKENS = 240


def test_a_draft_that_knows_the_noise_is_the_draw_and_one_that_does_not_is_the_likeliest_token():
    """The draft cache holds the whole text, so that the backbone's drafts are made of the target's own logits: with the
    noise of the draws they are the draws, without it they are right as often as the likeliest token is drawn."""
    model = small_models.random_model(small_models.VOCAB)
    sampling = SamplingConfig(temperature=1.0, seed=4)
    shared, alone = (
        decode(
            model,
            [1, 2, 3],
            sampling,
            SpeculationConfig(mode="selfspec", draft_cache=256, shared_noise=noise),
            max_new_tokens=TOKENS,
            ignore_eos=True,
        )
        for noise in (True, False)
    )
    assert_same(alone.tokens, shared.tokens)
    # All four drafts of every iteration, the last one's perhaps cut by the end of the text.
    assert {len(run) for run in shared.runs[1:-1]} == {5}
    # Logits of spread 1.5 over 48 tokens: the likeliest is drawn about every fourth time.
    assert 0 < sum(alone.accepted_per_depth) < 0.5 * sum(shared.accepted_per_depth)
