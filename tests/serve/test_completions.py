"""`/v1/completions`: the texts of `generate`, whoever else is served; echo, log-probabilities, lists, streams."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tokenswift_jax.scoring import score_tokens

PATH = "/v1/completions"
PROMPT = "It was late in the autumn, and the road"


def test_many_clients_get_the_texts_that_each_gets_alone(live):
    """More clients than slots, with settings of their own; every other one reads a stream."""
    asked = [
        {"prompt": PROMPT, "max_tokens": 40, "seed": 5},
        {"prompt": PROMPT, "max_tokens": 30, "temperature": 0},
        {"prompt": "Chapter 1", "max_tokens": 50, "seed": 2**32 - 1, "top_p": 0.9},
        {"prompt": "A" * 150, "max_tokens": 25, "seed": 7, "temperature": 1.5, "min_p": 0},
        {"prompt": [5, 6, 7], "max_tokens": 35, "seed": 3, "top_k": 5, "repetition_penalty": 1.3},
        {"prompt": "The", "max_tokens": 1, "seed": 4},
    ]

    def ask(number):
        if number % 2:
            parts = live.events(PATH, stream=True, **asked[number])
            return "".join(part["choices"][0]["text"] for part in parts)
        return live.post(PATH, **asked[number])["choices"][0]["text"]

    with ThreadPoolExecutor(len(asked)) as pool:
        texts = list(pool.map(ask, range(len(asked))))
    for one, text in zip(asked, texts, strict=True):
        settings = {name: value for name, value in one.items() if name not in ("prompt", "max_tokens")}
        assert text == live.alone(one["prompt"], one["max_tokens"], **settings).text
    live.emptied()


def test_a_body_without_settings_starts_from_the_checkpoints_own(live):
    """The seed that was drawn is in the answer, and repeats it."""
    first = live.post(PATH, prompt=PROMPT, max_tokens=20)
    assert first["choices"][0]["text"] == live.alone(PROMPT, 20, seed=first["seed"]).text
    assert first["choices"][0]["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 20
    assert live.post(PATH, prompt=PROMPT)["usage"]["completion_tokens"] == 16


def test_echo_gives_the_log_probabilities_of_the_prompt(live):
    """As lm-evaluation-harness asks: token ids, greedy, one more token. The first token has no probability."""
    texts = [live.model.tokenizer(text)["input_ids"] for text in (PROMPT, "Chapter 1. The")]
    answer = live.post(PATH, prompt=texts, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1)
    for ids, choice in zip(texts, answer["choices"], strict=True):
        found = choice["logprobs"]
        (scored,) = score_tokens(live.model, [ids], 1)
        assert found["token_logprobs"][0] is None
        np.testing.assert_allclose(found["token_logprobs"][1:-1], scored.logprobs, rtol=1e-6)
        greedy = [
            value == max(top.values())
            for value, top in zip(found["token_logprobs"][1:-1], found["top_logprobs"][1:-1], strict=True)
        ]
        assert greedy == scored.greedy.tolist()
        assert len(found["tokens"]) == len(ids) + 1
        assert choice["text"].startswith(live.model.tokenizer.decode(ids))
        places = [*found["text_offset"], len(choice["text"])]
        pieces = [choice["text"][a:b] for a, b in itertools.pairwise(places)]
        assert pieces == found["tokens"]
    alone = live.post(PATH, prompt=texts[0], max_tokens=0, logprobs=1, echo=True)["choices"][0]
    assert alone["finish_reason"] == "length"
    assert alone["logprobs"]["token_logprobs"] == answer["choices"][0]["logprobs"]["token_logprobs"][:-1]


@pytest.mark.parametrize(("asked", "fewest", "most"), [(0, 1, 1), (5, 5, 6)])
def test_log_probabilities_of_a_text(live, asked, fewest, most):
    """A stream has those of the whole answer, and the chosen token is always among those shown."""
    body = {"prompt": PROMPT, "max_tokens": 12, "seed": 8, "logprobs": asked}
    whole = live.post(PATH, **body)["choices"][0]
    assert all(fewest <= len(top) <= most for top in whole["logprobs"]["top_logprobs"])
    assert whole["logprobs"]["text_offset"][0] == 0
    parts = [part["choices"][0]["logprobs"] for part in live.events(PATH, stream=True, **body)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[name]] == whole["logprobs"][name]
    shown = zip(whole["logprobs"]["tokens"], whole["logprobs"]["top_logprobs"], strict=True)
    assert all(token in top for token, top in shown)
    alone = live.alone(PROMPT, 12, seed=8)
    assert whole["text"] == alone.text


def test_lists_and_choices_are_numbered(live):
    """Two prompts with three choices each; choice i of a prompt is text i of the seed."""
    answer = live.post(PATH, prompt=[PROMPT, "Chapter 1"], n=3, max_tokens=6, seed=11)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for index, choice in enumerate(answer["choices"]):
        prompt = (PROMPT, "Chapter 1")[index // 3]
        assert choice["text"] == live.alone(prompt, 6, seed=11, sequence=index % 3).text
    assert answer["usage"]["completion_tokens"] == 36
    parts = live.events(PATH, prompt=[PROMPT, "Chapter 1"], n=3, max_tokens=6, seed=11, stream=True)
    texts = [""] * 6
    for part in parts:
        texts[part["choices"][0]["index"]] += part["choices"][0]["text"]
    assert texts == [choice["text"] for choice in answer["choices"]]


def test_a_request_of_more_texts_than_the_queue_holds(live):
    """A queue that is not full takes all of them: else no number of tries would ever be enough."""
    count = live.service.scheduler.max_queue + 10
    answer = live.post(PATH, prompt=[[5, 6]] * count, max_tokens=1, temperature=0)
    assert len({choice["text"] for choice in answer["choices"]}) == 1
    assert len(answer["choices"]) == count
    live.emptied()


def test_ends(live):
    """Stop strings, stop tokens, the least number of tokens, and the EOS that does not count."""
    text = live.alone(PROMPT, 40, seed=5)
    stop = text.text[20:23]
    answer = live.post(PATH, prompt=PROMPT, max_tokens=40, seed=5, stop=[stop])["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == (text.text[: text.text.index(stop)], "stop")
    token = text.token_ids[9]
    answer = live.post(PATH, prompt=PROMPT, max_tokens=40, seed=5, stop_token_ids=[token], return_token_ids=True)
    ids = text.token_ids[: text.token_ids.index(token) + 1]
    assert answer["choices"][0]["token_ids"] == ids
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == live.alone(PROMPT, len(ids) - 1, seed=5).text
    assert answer["choices"][0]["prompt_token_ids"] == live.model.tokenizer(PROMPT)["input_ids"]
    body = {"prompt": PROMPT, "max_tokens": 40, "seed": 5, "min_tokens": 25, "return_token_ids": True}
    later = live.post(PATH, **body, stop_token_ids=[token])["choices"][0]["token_ids"]
    places = [place for place, each in enumerate(text.token_ids) if each == token and place >= 25]
    assert later == text.token_ids[: places[0] + 1 if places else 40]
    later = live.post(PATH, **body, stop=[stop, " "])["choices"][0]
    given = live.alone(PROMPT, 25, seed=5).text
    assert later["text"].startswith(given)
    assert later["finish_reason"] == "stop"
    assert later["text"] == text.text[: text.text.index(" ", len(given))]
    only = live.post(PATH, prompt=PROMPT, max_tokens=5, allowed_token_ids=[17], ignore_eos=True, return_token_ids=True)
    assert only["choices"][0]["token_ids"] == [17] * 5


def test_token_ids_of_streams_are_those_of_the_whole_answer(live):
    """With the prompt's ids in the first part of each choice alone."""
    body = {"prompt": [PROMPT, "Chapter 1"], "n": 2, "max_tokens": 30, "seed": 3, "return_token_ids": True}
    for more in ({}, {"echo": True}):
        whole, parts = live.post(PATH, **body, **more), live.events(PATH, stream=True, **body, **more)
        for choice in whole["choices"]:
            own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
            assert [token for part in own for token in part["token_ids"]] == choice["token_ids"]
            assert [part.get("prompt_token_ids") for part in own] == [
                choice["prompt_token_ids"],
                *[None] * len(own[1:]),
            ]
    body = {"messages": [{"role": "user", "content": PROMPT}], "n": 2, "max_tokens": 30, "return_token_ids": True}
    parts = live.events("/v1/chat/completions", stream=True, **body)
    assert ["prompt_token_ids" in part for part in parts] == [True, *[False] * len(parts[1:])]


def test_offsets_of_special_tokens_and_of_broken_characters(live):
    """An offset is an index in the text of the answer: of special tokens that the prompt has as text, and after bytes
    that no later token completed."""
    special = live.model.tokenizer.eos_token
    body = {"prompt": f"{special}Hello there", "max_tokens": 3, "seed": 3, "logprobs": 0, "echo": True}
    choice = live.post(PATH, **body)["choices"][0]
    found = choice["logprobs"]
    assert found["text_offset"][:2] == [0, len(special)]
    places = [*found["text_offset"][1:], len(choice["text"])]
    assert [choice["text"][a:b] for a, b in itertools.pairwise(places)] == found["tokens"][1:]
    for seed in range(12):
        body = {"prompt": PROMPT, "max_tokens": 12, "seed": seed, "logprobs": 0, "temperature": 1e6}
        choice = live.post(PATH, **body)["choices"][0]
        found, text = choice["logprobs"], choice["text"]
        for place, token in zip(found["text_offset"], found["tokens"], strict=True):
            if token.isascii() and token and not token.startswith("bytes:") and token != special:
                assert text[place:].startswith(token), (text, found)


def test_an_error_names_the_field_of_the_body(live):
    for name, value in {
        "allowed_token_ids": [0],
        "suppress_tokens": list(range(1, live.model.config.vocab_size)),
    }.items():
        status, _, answer = live.send(PATH, {"prompt": PROMPT, "max_tokens": 3, "min_tokens": 3, name: value})
        assert (status, answer["error"]["param"]) == (400, name)
        assert answer["error"]["message"].startswith(name)


def test_streamed_usage(live):
    parts = live.events(PATH, prompt=PROMPT, max_tokens=9, seed=1, stream=True, stream_options={"include_usage": True})
    assert [part["usage"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == 9
    every = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        part["usage"]["completion_tokens"]
        for part in live.events(PATH, prompt=PROMPT, max_tokens=40, seed=1, stream=True, stream_options=every)
    ]
    assert counts == sorted(counts)
    assert counts[-1] == 40


def test_tokens_and_text(live):
    tokenizer = live.model.tokenizer
    for name in ("prompt", "content"):
        answer = live.post("/tokenize", **{name: PROMPT}, return_token_strs=True)
        assert answer["tokens"] == tokenizer(PROMPT)["input_ids"]
        assert "".join(answer["token_strs"]) == PROMPT
    assert live.post("/detokenize", tokens=answer["tokens"])["prompt"] == PROMPT
    turns = [{"role": "user", "content": PROMPT}]
    assert live.post("/tokenize", messages=turns)["tokens"] == answer["tokens"]
    assert live.send("/tokenizer_info")[2]["eos_token"] == "<|endoftext|>"
    for path, body, reason in (
        ("/detokenize", {"tokens": "x"}, "tokens must be a list of token ids"),
        ("/tokenize", {}, "prompt is missing; give text, or a conversation as messages"),
    ):
        status, _, refused = live.send(path, body)
        assert (status, refused["error"]["message"]) == (400, reason)


def test_a_prompt_of_ids_longer_than_every_text_is_truncated_as_text_is(live):
    ids = [5 + place % 50 for place in range(live.service.max_length + 60)]
    cut = live.post(PATH, prompt=ids, truncate_prompt_tokens=20, max_tokens=6, seed=3)
    assert cut["usage"]["prompt_tokens"] == 20
    assert cut["choices"][0]["text"] == live.alone(ids[-20:], 6, seed=3).text
    status, _, refused = live.send(PATH, {"prompt": ids, "max_tokens": 6})
    assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
