"""Predicted outputs: the same text in fewer iterations, and OpenAI's counts."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("starlette")
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.generation import Choice
from tokenswift_jax.serve.openai.prediction import prediction_tokens, read_prediction

PROMPT = "It was late in the autumn, and the road"
MOST = 120


def of(text):
    return {"type": "content", "content": text}


def iterations(live):
    """Each iteration ends with a token of the target, whether or not it had drafts."""
    live.emptied()
    registry, name = live.service.metrics.registry, "tokenswift:emitted_tokens_by_source_total"
    return registry.get_sample_value(name, {"model_name": "demo", "source": "target"}) or 0


def asked(live, **body):
    """The answer, and the iterations that it took."""
    before = iterations(live)
    answer = live.post("/v1/completions", prompt=PROMPT, max_tokens=MOST, temperature=0, **body)
    return answer, iterations(live) - before


def test_a_prediction_saves_iterations_and_changes_no_text(live):
    plain, without = asked(live)
    text = plain["choices"][0]["text"]
    assert text == live.alone(PROMPT, MOST, temperature=0).text
    assert "completion_tokens_details" not in plain["usage"]
    exact, few = asked(live, prediction=of(text))
    assert exact["choices"][0]["text"] == text
    assert few < 0.8 * without
    found = exact["usage"]["completion_tokens_details"]
    assert found["accepted_prediction_tokens"] >= MOST - few - 3
    assert found["rejected_prediction_tokens"] <= 3  # the text's last tokens may be spelled otherwise


def test_a_wrong_prediction_changes_no_text(live):
    plain, _ = asked(live)
    parts = of([{"type": "text", "text": "§§ 77 "}, {"type": "text", "text": "#!? " * 50}])
    wrong, _ = asked(live, prediction=parts, n=2)
    assert wrong["choices"][0]["text"] == plain["choices"][0]["text"]
    tokens = len(live.model.tokenizer("§§ 77 " + "#!? " * 50)["input_ids"])
    assert wrong["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 2 * tokens,
    }


def test_the_stock_client_reads_the_counts(live):
    openai = pytest.importorskip("openai")
    turns = [{"role": "user", "content": PROMPT}]
    text = live.alone(PROMPT, 60, temperature=0).text
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="any", max_retries=0) as client:
        given = {"model": "demo", "messages": turns, "max_tokens": 60, "temperature": 0, "prediction": of(text)}
        whole = client.chat.completions.create(**given)
        chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens_details.accepted_prediction_tokens > 20
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    "prediction",
    ["text", 5, [1], {"type": "content"}, {"type": "other", "content": "a"}, {"type": "content", "content": 5}, of([5]),
     of([{"type": "image_url", "image_url": {"url": "x"}}]), of("word " * 300)],
)  # fmt: skip
def test_other_forms_and_longer_texts_are_refused(live, prediction):
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{}]})):
        body = {"messages": [{"role": "user", "content": "a"}]} if "messages" in body else body
        status, _, answer = live.send(path, {**body, "max_tokens": 1, "prediction": prediction})
        assert status == 400
        assert answer["error"]["param"].startswith("prediction")


def test_null_and_empty_ask_for_nothing(live):
    for nothing in (None, {}, of("")):
        assert live.post("/v1/completions", prompt=PROMPT, max_tokens=1, prediction=nothing)


def test_a_server_without_ngrams_says_that_it_has_no_effect(live):
    service = SimpleNamespace(model=live.model, limits=live.service.limits, max_length=99, drafts_ngrams=False)
    fields = Fields({"prediction": of("It was"), "unheard": 1})
    assert read_prediction(fields, service)
    assert fields.notice == {"x-ignored-fields": "prediction, unheard"}


def test_counts_by_hand():
    """Accepted are drafted tokens in a run of three that the prediction has; rejected are those in no such run."""
    prediction = [1, 2, 3, 4, 5, 6, 7]
    choice = Choice(0, [], None, token_ids=[9, 2, 3, 4, 9, 6, 7], sources=[1, 0, 1, 2, 1, 2, 2])
    assert prediction_tokens(prediction, [choice]) == {
        "accepted_prediction_tokens": 2,
        "rejected_prediction_tokens": 4,
    }
    random = np.random.default_rng(0)
    for _ in range(50):
        text, other = (random.integers(0, 3, size).tolist() for size in random.integers(0, 12, 2))
        runs = {tuple(other[i : i + 3]) for i in range(len(other) - 2)}
        inside = [any(tuple(text[i : i + 3]) in runs and i <= at < i + 3 for i in range(len(text) - 2))
                  for at in range(len(text))]  # fmt: skip
        found = prediction_tokens(other, [Choice(0, [], None, token_ids=text, sources=[1] * len(text))])
        assert found["accepted_prediction_tokens"] == sum(inside)
