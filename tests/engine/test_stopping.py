"""Where a text ends: EOS, the cap and NaN inside an accepted run, and what the counters say then."""

import jax
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode, start
from speculations import SPECULATIONS

from tokenswift_jax import stats
from tokenswift_jax.errors import NumericsError
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.token_log import DRAFTED, SAMPLED, from_columns

PROMPT = np.random.default_rng(3).integers(0, small_models.VOCAB, 20).tolist()
GREEDY = SamplingConfig(temperature=0.0)
FUSED = SPECULATIONS["fused"]


@pytest.fixture(scope="module")
def model():
    return small_models.successor_model(layers=1, context=0.8)


@pytest.fixture(scope="module")
def free(model):
    """A text without an end: where each iteration's run lies is what the tests below aim at."""
    return decode(model, PROMPT, GREEDY, FUSED, max_new_tokens=48)


def first_seen(text, wanted):
    """The first index that is `wanted` and whose token does not occur earlier."""
    return next(
        index
        for emitted in text.runs
        for index in emitted
        if wanted(index, emitted) and text.tokens.index(text.tokens[index]) == index
    )


def counters(text):
    seconds = np.ones(len(text.tokens))
    return stats.acceptance(from_columns(text.tokens, text.sources, text.offsets, text.offered, seconds))


def check(text, expected, finish):
    """The text ends as expected, and generated = 1 + accepted + iterations."""
    assert_same(text.tokens, expected)
    assert text.finish == finish
    counted = counters(text)
    assert len(text.tokens) == 1 + counted["accepted_tokens"] + counted["iterations"]


PLACES = {
    "an accepted draft within a run": lambda text: first_seen(
        text, lambda i, run: run.start < i < run.stop - 2 and text.sources[i] == DRAFTED
    ),
    "the first of a run": lambda text: first_seen(text, lambda i, run: i == run.start and len(run) > 2),
    "the last accepted draft": lambda text: first_seen(text, lambda i, run: i == run.stop - 2 and len(run) > 2),
    "the draw that ends a run": lambda text: first_seen(
        text, lambda i, run: i == run.stop - 1 and len(run) > 2 and text.sources[i] == SAMPLED
    ),
    "prefill's token": lambda text: 0,
}


@pytest.mark.parametrize("place", PLACES)
def test_eos_ends_the_text_at_its_place(model, free, place):
    index = PLACES[place](free)
    ending = small_models.with_eos(model, free.tokens[index])
    check(decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=48), free.tokens[: index + 1], "eos")
    check(decode(ending, PROMPT, GREEDY, max_new_tokens=48), free.tokens[: index + 1], "eos")
    ignoring = decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=48, ignore_eos=True)
    check(ignoring, free.tokens, "length")


def test_the_cap_may_fall_anywhere(model, free):
    """Also where it cuts a run: within the first 12 tokens it falls on every index of some."""
    assert max(map(len, free.runs[:4])) > 2
    for cap in range(1, 13):
        check(decode(model, PROMPT, GREEDY, FUSED, max_new_tokens=cap), free.tokens[:cap], "length")


def test_eos_on_the_cap_is_eos(model, free):
    index = PLACES["an accepted draft within a run"](free)
    ending = small_models.with_eos(model, free.tokens[index])
    check(decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=index + 1), free.tokens[: index + 1], "eos")
    check(decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=index), free.tokens[:index], "length")


def test_the_earliest_of_several_eos_ends_the_text(model, free):
    inside = PLACES["an accepted draft within a run"](free)
    ending = small_models.with_eos(model, free.tokens[inside + 1], free.tokens[inside])
    check(decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=48), free.tokens[: inside + 1], "eos")


def test_eos_is_not_drawn_before_min_new_tokens(model, free):
    index = PLACES["an accepted draft within a run"](free)
    ending = small_models.with_eos(model, free.tokens[index])
    for least in (index, index + 1, index + 2, 40):  # the draw at `index` is free with `index` tokens before it
        plain = decode(ending, PROMPT, GREEDY, max_new_tokens=200, min_new_tokens=least)
        assert len(plain.tokens) > least
        assert (plain.tokens[: index + 1] == free.tokens[: index + 1]) == (least <= index)
        assert free.tokens[index] not in plain.tokens[:least]
        speculative = decode(ending, PROMPT, GREEDY, FUSED, max_new_tokens=200, min_new_tokens=least)
        check(speculative, plain.tokens, plain.finish)


def test_counters_are_those_of_the_runs(free):
    counted = counters(free)
    lengths = [len(emitted) - 1 for emitted in free.runs]
    assert counted["iterations"] == len(lengths)
    assert counted["accepted_tokens"] == sum(lengths)
    assert counted["draft_depth"] == sum(int(free.offered[emitted.start]) for emitted in free.runs)
    deepest = max(int(free.offered[emitted.start]) for emitted in free.runs)
    assert counted["accepted_per_position"] == [sum(n > depth for n in lengths) for depth in range(deepest)]


def deliver(model, mode):
    """The tokens a run delivered before it ended with an error, and the position it names (None if it ended well)."""
    tokens = []
    speculation = SPECULATIONS[mode]
    running = start(model, [PROMPT], GREEDY, speculation, max_new_tokens=48)
    for step in running:
        (row,) = step.rows
        tokens += row.log.token_ids.tolist()
        if row.error is not None:
            return tokens, row.error.position
    return tokens, None


@pytest.mark.parametrize("mode", ["plain", "fused"])
@pytest.mark.parametrize("place", PLACES)
def test_nan_stops_the_run_with_its_position(model, free, place, mode):
    index = PLACES[place](free)
    if free.tokens[index] in PROMPT:
        index = next(i for i in range(index, 48) if free.tokens[i] not in PROMPT + free.tokens[:i])
    tokens, position = deliver(small_models.poisoned(model, free.tokens[index]), mode)
    assert_same(tokens, free.tokens[: index + 1])
    assert position == len(PROMPT) + index + 1


@pytest.mark.parametrize("mode", ["fused", "partial", "selfspec"])
def test_nan_in_a_rejected_draft_changes_nothing(model, free, mode):
    """A drafted token may be poison while the text never holds it."""
    absent = [token for token in range(small_models.VOCAB) if token not in PROMPT + free.tokens[:30]]
    assert absent
    for token in absent[:3]:
        tokens, position = deliver(small_models.poisoned(model, token), mode)
        stop = free.tokens.index(token) + 1 if token in free.tokens else 48
        assert_same(tokens, free.tokens[:stop])
        assert (position is None) == (stop == 48)


def test_nan_in_the_prompt_is_named_too(model):
    with pytest.raises(NumericsError, match=str(len(PROMPT))):
        decode(small_models.poisoned(model, PROMPT[4]), PROMPT, GREEDY, max_new_tokens=8)


def test_the_tests_numbers_are_what_they_seem(model, free):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, model.params)))
    assert sum(free.accepted_per_depth) > 10
