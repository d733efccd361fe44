"""Arguments of `generate` that take one value for all prompts or a list of one each."""

from dataclasses import replace

import pytest
import small_models

import tokenswift_jax as ts

PROMPTS = [[3, 9, 14], [7] * 20, [1, 2]]
SAMPLING = ts.SamplingConfig(temperature=0.9, seed=3, sequence=4)
FUSED = ts.SpeculationConfig(mode="tokenswift", schedule="fused", tree=(1, 2, 2, 2), node_budget=7, ngram_k=2)


@pytest.fixture(scope="module")
def model():
    return small_models.with_eos(small_models.successor_model(layers=1, certainty=6.0, context=0.8), 36)


def alone(model, prompt, sampling, **asked):
    return ts.generate(model, prompt, sampling, ts.SpeculationConfig(mode="autoregressive"), **asked).token_ids


def test_one_setting_serves_all_and_numbers_the_rows(model):
    outs = ts.generate(model, PROMPTS, SAMPLING, FUSED, max_new_tokens=30)
    for row, out in enumerate(outs):
        own = replace(SAMPLING, sequence=4 + row)
        assert out.token_ids == alone(model, PROMPTS[row], own, max_new_tokens=30)
        assert (out.seed, out.sequence) == (3, 4 + row)


def test_a_list_is_used_as_given(model):
    settings = [ts.SamplingConfig(temperature=0.0), SAMPLING, replace(SAMPLING, top_k=5, repetition_penalty=1.3)]
    lengths, shortest, ignored = [10, 25, 40], [0, 20, 3], [False, True, False]
    outs = ts.generate(
        model, PROMPTS, settings, FUSED, max_new_tokens=lengths, min_new_tokens=shortest, ignore_eos=ignored
    )
    for row, out in enumerate(outs):
        asked = {"max_new_tokens": lengths[row], "min_new_tokens": shortest[row], "ignore_eos": ignored[row]}
        assert out.token_ids == alone(model, PROMPTS[row], settings[row], **asked)
        assert out.sequence == settings[row].sequence


def test_a_row_with_nan_ends_alone_and_says_so(model):
    good = ts.generate(model, PROMPTS, SAMPLING, FUSED, max_new_tokens=30)
    used = {token for prompt in PROMPTS for token in prompt} | {t for out in good for t in out.token_ids}
    poison = next(token for token in range(small_models.VOCAB) if token not in used)
    prompts = [*PROMPTS, [5, poison, 5]]
    outs = ts.generate(small_models.poisoned(model, poison), prompts, SAMPLING, FUSED, max_new_tokens=30)
    for out, expected in zip(outs, good, strict=False):
        assert out.token_ids == expected.token_ids
        assert out.error is None
    assert (outs[3].finish_reason, outs[3].token_ids) == ("error", [])
    assert "position 3 are not numbers" in outs[3].error
    with pytest.raises(ts.NumericsError, match="position 3"):
        ts.generate(small_models.poisoned(model, poison), prompts[3], SAMPLING, max_new_tokens=30)


def test_a_row_that_meets_nan_in_its_text_keeps_what_came_before(model):
    """A token that one row draws after some others, and no other row before its last token, is poison."""
    limits = {"max_new_tokens": 40, "ignore_eos": True}
    good = [out.token_ids for out in ts.generate(model, PROMPTS, SAMPLING, FUSED, **limits)]
    seen = [{*prompt, *text[:-1]} for prompt, text in zip(PROMPTS, good, strict=True)]
    row, index = next(
        (row, index)
        for row, text in enumerate(good)
        for index, token in enumerate(text[:-1])
        if index > 4 and token not in [*PROMPTS[row], *text[:index]] and sum(token in one for one in seen) == 1
    )
    outs = ts.generate(small_models.poisoned(model, good[row][index]), PROMPTS, SAMPLING, FUSED, **limits)
    for number, out in enumerate(outs):
        if number != row:
            assert (out.token_ids, out.error, out.finish_reason) == (good[number], None, "length")
    assert (outs[row].finish_reason, outs[row].token_ids) == ("error", good[row][: index + 1])
    assert f"position {len(PROMPTS[row]) + index + 1} are not numbers" in outs[row].error


@pytest.mark.parametrize(
    ("sampling", "asked", "message"),
    [
        ([SAMPLING] * 2, {}, "sampling has 2 entries for 3 prompts; give one each, or one value for all"),
        ([SAMPLING, SAMPLING, {"temperature": 1}], {}, "sampling has a dict where a SamplingConfig is expected"),
        (SAMPLING, {"max_new_tokens": [5]}, "max_new_tokens has 1 entries for 3 prompts"),
        (SAMPLING, {"max_new_tokens": [5, 0, 5]}, "max_new_tokens is 0; it must be a whole number, 1 or above"),
        (SAMPLING, {"min_new_tokens": [1, 2, 9]}, "min_new_tokens 9 is above max_new_tokens 8; lower one"),
        (SAMPLING, {"ignore_eos": [True, False, 1]}, "ignore_eos is 1; it must be True or False"),
        (SAMPLING, {"stop": [["a"], ["b"]]}, "stop has 2 entries for 3 prompts"),
        (SAMPLING, {"stop": ["a"]}, "stop needs text, and this checkpoint has no tokenizer"),
        (SAMPLING, {"stop": [["a"], "b", []]}, "a stop string is text of at least one character"),
    ],
)
def test_lists_that_do_not_fit(model, sampling, asked, message):
    with pytest.raises(ts.UserError, match=message):
        ts.generate(model, PROMPTS, sampling, **({"max_new_tokens": 8} | asked))
