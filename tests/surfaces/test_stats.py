"""Every statistic against a plain recount of scripted runs."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import chunk, drafted, prefilled, timed

from tokenswift_jax import stats
from tokenswift_jax.token_log import NGRAM, concatenate, from_columns


def records(*chunks, seconds=1.0):
    return concatenate([timed(part, 0.0 if part.log.offsets.tolist() == [-1] else seconds) for part in chunks])


def test_the_example_by_hand():
    counts = stats.acceptance(records(prefilled(9), drafted([1, 2, 3], [4]), drafted([5, 6, 7, 8])))
    assert counts == {
        "iterations": 3,
        "draft_depth": 9,
        "accepted_tokens": 5,
        "ngram_accepted_tokens": 0,
        "acceptance_rate": 5 / 9,
        "mean_accepted_length": 5 / 3 + 1,
        "accepted_per_position": [2, 2, 1],
    }


def recount(iterations):
    """iterations: (sources, offered); the last token of each is the one more."""
    accepted = [len(sources) - 1 for sources, _ in iterations]
    deepest = max([offered for _, offered in iterations], default=0)
    return {
        "iterations": len(iterations),
        "draft_depth": sum(offered for _, offered in iterations),
        "accepted_tokens": sum(accepted),
        "ngram_accepted_tokens": sum(source == NGRAM for sources, _ in iterations for source in sources[:-1]),
        "accepted_per_position": [sum(count > depth for count in accepted) for depth in range(deepest)],
    }


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(3, 4))), st.data())
def test_any_run_cut_anywhere(iterations, data):
    tokens = [(0, 0, -1, 0)]
    for sources, offered in iterations:
        tokens += [(offset, source, offset, offered) for offset, source in enumerate(sources)]
    count = data.draw(st.integers(1, len(tokens)), label="kept tokens")
    kept, left = [], count - 1
    for sources, offered in iterations:
        if left > 0:
            kept.append((sources[:left], offered))
            left -= len(sources)
    found = stats.acceptance(records(chunk(*tokens)).cut(count))
    wanted = recount(kept)
    assert {name: found[name] for name in wanted} == wanted
    assert count == 1 + found["accepted_tokens"] + found["iterations"]
    assert found["acceptance_rate"] == (wanted["accepted_tokens"] / wanted["draft_depth"] if kept else 0.0)


def test_plain_decoding_has_a_mean_accepted_length_of_one():
    counts = stats.acceptance(records(prefilled(1), chunk((2, 0, 0, 0), (3, 0, 0, 0))))
    assert counts["mean_accepted_length"] == 1.0
    assert (counts["draft_depth"], counts["acceptance_rate"], counts["accepted_per_position"]) == (0, 0.0, [])


def test_nothing_generated():
    counts = stats.acceptance(concatenate([]))
    assert (counts["iterations"], counts["accepted_tokens"], counts["mean_accepted_length"]) == (0, 0, 1.0)
    assert stats.timing(concatenate([])) == {"decode_seconds": 0.0, "tokens_per_second": 0.0, "latency": []}
    assert stats.distinct_n(np.zeros(0, np.int32)) == {"1": 0.0, "2": 0.0, "3": 0.0, "4": 0.0}


def test_a_second_prefill_token_is_an_iteration_that_offered_nothing():
    counts = stats.acceptance(records(prefilled(1), drafted([2, 3]), prefilled(4), drafted([5, 6])))
    assert (counts["iterations"], counts["accepted_tokens"], counts["draft_depth"]) == (3, 2, 6)


def test_latency_is_per_window_and_leaves_out_the_first_token():
    slow, fast = [drafted([1] * 2)] * 256, [drafted([1] * 2)] * 50
    parts = [timed(prefilled(0), 0.0)]
    parts += [timed(part, 0.004) for part in slow] + [timed(part, 0.001) for part in fast]
    timing = stats.timing(concatenate(parts))
    assert [window["tokens"] for window in timing["latency"]] == [512, 100]
    assert [window["ms_per_token"] for window in timing["latency"]] == pytest.approx([2.0, 0.5])
    assert timing["decode_seconds"] == pytest.approx(256 * 0.004 + 50 * 0.001)
    assert timing["tokens_per_second"] == pytest.approx(612 / timing["decode_seconds"])


def test_cut_tokens_leave_their_time_behind():
    kept = timed(drafted([1, 2, 3, 4]), 2.0).cut(1)
    assert kept.seconds.tolist() == [2.0]


@given(st.lists(st.integers(0, 2), max_size=20))
def test_distinct_n(ids):
    for n, share in stats.distinct_n(np.asarray(ids, np.int32)).items():
        grams = [tuple(ids[at : at + int(n)]) for at in range(len(ids) - int(n) + 1)]
        assert share == (len(set(grams)) / len(grams) if grams else 0.0)


def test_json_has_exactly_the_contract_s_fields():
    result = stats.GenerationResult(
        text="hidden",
        **dict.fromkeys(("model", "mode", "device", "dtype", "finish_reason"), "x"),
        **dict.fromkeys(("seed", "sequence", "prompt_tokens", "generated_tokens"), 1),
        versions={"jax": "0", "tokenswift_jax": "0"},
        token_ids=[1],
        schedule_trace=[],
        compile_seconds=0.0,
        prefill_seconds=0.0,
        distinct_n={},
        **stats.acceptance(from_columns([1], [0], [-1], [0], [0.0])),
        **stats.timing(from_columns([1], [0], [-1], [0], [0.0])),
    )
    fields = [
        *("model", "mode", "seed", "sequence", "device", "dtype", "versions", "prompt_tokens", "generated_tokens"),
        *("token_ids", "finish_reason", "iterations", "draft_depth", "accepted_tokens", "ngram_accepted_tokens"),
        *("acceptance_rate", "mean_accepted_length", "accepted_per_position", "schedule_trace", "compile_seconds"),
        *("prefill_seconds", "decode_seconds", "tokens_per_second", "latency", "distinct_n", "audit"),
    ]
    assert list(json.loads(result.to_json())) == fields
