"""The stock `openai` client against a live server: answers, streams, errors, retries, leaving."""

import pytest

openai = pytest.importorskip("openai")

PROMPT = "It was late in the autumn, and the road"
TURNS = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_models(live, client):
    (model,) = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo").max_model_len == live.service.max_length
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(live, client):
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=20, seed=3, logprobs=2)
    assert answer.choices[0].text == live.alone(PROMPT, 20, seed=3).text
    assert len(answer.choices[0].logprobs.top_logprobs) == 20
    assert answer.usage.completion_tokens == 20


def test_chat_and_its_stream_give_the_same_text(live, client):
    """The demo's template is the text of the turns, so that the answer continues the prompt."""
    asked = {"model": "demo", "messages": TURNS, "max_completion_tokens": 30, "seed": 4, "n": 2}
    answer = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [live.alone(PROMPT, 30, seed=4, sequence=index).text for index in range(2)]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    streamed, roles, ends = ["", ""], [], []
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
        roles += [choice.delta.role] if choice.delta.role else []
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert streamed == texts
    assert roles == ["assistant"] * 2
    assert ends == ["length"] * 2
    assert chunks[-1].usage.completion_tokens == 60
    assert chunks[-1].choices == []


def test_chat_log_probabilities(live, client):
    answer = client.chat.completions.create(
        model="demo", messages=TURNS, max_tokens=10, seed=4, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.choices[0].message.content
    assert [len(entry.top_logprobs) for entry in content] == [3] * 10
    assert all(entry.top_logprobs[0].logprob >= entry.logprob - 1e-6 for entry in content)


def test_content_in_parts_and_a_developer_turn(live, client):
    parts = [{"role": "developer", "content": "Chapter 1."}, {"role": "user", "content": [_part("It "), _part("was")]}]
    answer = client.chat.completions.create(model="demo", messages=parts, max_tokens=8, seed=1)
    assert answer.choices[0].message.content == live.alone("Chapter 1.\n\nIt was", 8, seed=1).text


def _part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 3}}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"min_tokens": 50}}, "min_tokens"),
        ({"n": 1000}, "n"),
        ({"seed": 2**40}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(client, changed, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "demo", "messages": TURNS, "max_tokens": 5, **changed})
    assert refused.value.param == param
    assert refused.value.body["type"] == "invalid_request_error"
    assert param in refused.value.body["message"]


def test_neutral_values_of_such_fields_ask_for_nothing(live, client):
    answer = client.chat.completions.create(
        model="demo", messages=TURNS, max_tokens=5, seed=1, frequency_penalty=0, presence_penalty=0, logit_bias={},
        response_format={"type": "text"}, tool_choice="none", parallel_tool_calls=True, user="me", store=False,
    )  # fmt: skip
    assert answer.choices[0].message.content == live.alone(PROMPT, 5, seed=1).text


def test_a_field_that_nobody_knows_is_reported(client):
    raw = client.completions.with_raw_response.create(
        model="demo", prompt=PROMPT, max_tokens=1, extra_body={"unheard": 1, "of": [2]}
    )
    assert raw.headers["x-ignored-fields"] == "unheard, of"
    assert raw.headers["x-request-id"].startswith("req_")


def test_errors_say_whether_another_try_helps(live):
    """The client obeys: one request for a wrong body; several while the server takes none, as when it goes down."""
    seen = []
    http = openai.DefaultHttpxClient(event_hooks={"response": [lambda answer: seen.append(answer.status_code)]})
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{live.port}/v1", api_key="any", max_retries=2, http_client=http
    ) as patient:
        with pytest.raises(openai.NotFoundError):
            patient.chat.completions.create(model="other", messages=TURNS)
        assert seen == [404]
        seen.clear()
        most, live.service.scheduler.max_queue = live.service.scheduler.max_queue, 0
        try:
            with pytest.raises(openai.RateLimitError) as refused:
                patient.with_options(max_retries=0).completions.create(model="demo", prompt=PROMPT)
        finally:
            live.service.scheduler.max_queue = most
        assert seen == [429]
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
        assert refused.value.response.headers["x-should-retry"] == "true"


def test_a_stream_that_is_closed_ends_its_run(live, client):
    before = live.service.metrics.registry.get_sample_value("tokenswift:disconnects_total", {"model_name": "demo"})
    with client.completions.create(model="demo", prompt=PROMPT, max_tokens=200, stream=True, seed=1) as stream:
        next(iter(stream))
    live.emptied()
    after = live.service.metrics.registry.get_sample_value("tokenswift:disconnects_total", {"model_name": "demo"})
    assert after == before + 1
