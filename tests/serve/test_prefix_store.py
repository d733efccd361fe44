"""Texts that begin as earlier ones take over their K/V: the same bits, of nobody else's text."""

from types import SimpleNamespace
from typing import Any

import pytest
from houses import request

from tokenswift_jax.kv.dense import BLOCK
from tokenswift_jax.serve.openai.response_events import ResponseEvents
from tokenswift_jax.serve.prefix_store import PrefixStore, StoredText
from tokenswift_jax.serve.run import Run, RunState

PART = 1000  # bytes of a part, as the tests of the store count them
TEXT = list(range(5 * BLOCK))
ALICE, BOB = ("alice", ""), ("bob", "")


def named(name) -> Any:
    """Reads of parts that are words: they name the text and the part."""
    return lambda number: lambda: f"{name} {number}"


def stored(store, caller, tokens):
    """A text that offers all its parts to the store; a part's number is its name."""
    text = StoredText(store, caller, None, tokens)
    text.begin(0)
    text.keep(len(tokens), tokens, named(caller[0]))
    store.settle()


def found(store, caller, tokens, family=None):
    return StoredText(store, caller, family, tokens).parts


def test_a_part_is_found_by_the_caller_and_all_tokens_before_it():
    store = PrefixStore(10 * PART, PART)
    stored(store, ALICE, TEXT[: 3 * BLOCK])
    assert found(store, ALICE, TEXT) == ["alice 0", "alice 1", "alice 2"]
    assert found(store, ALICE, TEXT[: 2 * BLOCK - 1]) == ["alice 0"]
    assert found(store, ALICE, [7, *TEXT[1:]]) == []
    assert found(store, ALICE, [*TEXT[: BLOCK + 5], 0, *TEXT[BLOCK + 6 :]]) == ["alice 0"]
    assert found(store, ALICE, TEXT[BLOCK:]) == []  # the same tokens at other positions
    assert found(store, BOB, TEXT) == found(store, ("alice", "salt"), TEXT) == []
    stored(store, BOB, TEXT[: 2 * BLOCK])
    assert found(store, BOB, TEXT) == ["bob 0", "bob 1"]


def test_the_parts_that_steps_wrote_serve_their_family_alone():
    store = PrefixStore(10 * PART, PART)
    text = StoredText(store, ALICE, "run_1", TEXT[:BLOCK])
    text.begin(0)
    text.keep(BLOCK, TEXT, named("prompt"))
    text.decode()
    text.keep(3 * BLOCK, TEXT, named("step"))
    store.settle()
    assert found(store, ALICE, TEXT, "run_1") == ["prompt 0", "step 1", "step 2"]
    assert found(store, ALICE, TEXT) == found(store, ALICE, TEXT, "run_2") == ["prompt 0"]
    # K/V that are computed after such parts are the family's too; without a family nothing stores them.
    resumed = StoredText(store, ALICE, "run_1", TEXT)
    resumed.begin(3)
    resumed.keep(4 * BLOCK, TEXT, named("after"))
    store.settle()
    assert found(store, ALICE, TEXT, "run_1")[3:] == ["after 3"]
    assert found(store, ALICE, TEXT) == ["prompt 0"]
    stranger = StoredText(store, ALICE, None, TEXT)
    stranger.begin(1)
    stranger.decode()
    stranger.keep(3 * BLOCK, TEXT, named("never"))
    assert found(store, ALICE, TEXT) == ["prompt 0"]


def test_the_budget_drops_the_end_of_the_text_used_least_recently():
    store = PrefixStore(4 * PART, PART)
    other = TEXT[::-1]
    stored(store, ALICE, TEXT[: 2 * BLOCK])
    stored(store, ALICE, other[: 2 * BLOCK])
    assert (store.bytes, len(found(store, ALICE, TEXT))) == (4 * PART, 2)  # and TEXT is used last
    stored(store, BOB, TEXT[:BLOCK])
    assert store.bytes == 4 * PART
    assert [len(found(store, ALICE, tokens)) for tokens in (TEXT, other)] == [2, 1]
    assert found(store, BOB, TEXT) == ["bob 0"]


def test_a_text_longer_than_the_budget_keeps_its_beginning():
    store = PrefixStore(2 * PART, PART)
    stored(store, ALICE, TEXT)
    assert found(store, ALICE, TEXT) == ["alice 0", "alice 1"]
    assert store.bytes == 2 * PART


def test_nothing_continues_a_part_that_was_dropped():
    store = PrefixStore(2 * PART, PART)
    text = StoredText(store, ALICE, None, TEXT)
    text.begin(0)
    text.keep(BLOCK, TEXT, named("alice"))
    stored(store, BOB, TEXT[: 2 * BLOCK])
    text.keep(3 * BLOCK, TEXT, named("alice"))
    store.settle()
    assert found(store, ALICE, TEXT) == []
    assert (len(store._entries), store.bytes) == (2, 2 * PART)


def test_a_text_that_is_deleted_leaves_the_beginning_that_others_continue():
    store = PrefixStore(10 * PART, PART)
    branch = [*TEXT[:BLOCK], *TEXT[: 2 * BLOCK]]
    stored(store, ALICE, TEXT[: 3 * BLOCK])
    stored(store, ALICE, branch)
    stored(store, BOB, TEXT[:BLOCK])
    store.forget(ALICE, "run_1", TEXT)
    assert [len(found(store, ALICE, tokens)) for tokens in (TEXT, branch)] == [1, 3]
    store.forget(ALICE, None, branch)
    assert (found(store, ALICE, branch), found(store, BOB, TEXT), store.bytes) == ([], ["bob 0"], PART)


def test_the_usage_counts_cached_tokens_of_every_prompt_once():
    pytest.importorskip("starlette")
    from tokenswift_jax.serve.openai.generation import usage

    channels: list[Any] = [SimpleNamespace(run=SimpleNamespace(cached=cached)) for cached in (256, 0, 512, 512)]
    found = usage([[1] * 300, [1] * 600], 7, channels)
    assert found["prompt_tokens_details"] == {"cached_tokens": 768}
    assert usage([[1]], 0, [])["prompt_tokens_details"] == {"cached_tokens": 0}
    run = Run(request(0), cached=256)
    run.state, run.finish = RunState.FINISHED, "eos"
    answer = ResponseEvents(run, {}, background=False, store=False).object("completed")
    assert answer["usage"]["input_tokens_details"] == {"cached_tokens": 256}
