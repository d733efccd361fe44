"""`/v1/responses`: in the background, rejoined, cancelled, continued; and the same after another server takes over."""

import json
import time

import pytest
from live import Live, until

openai = pytest.importorskip("openai")

PROMPT = "It was late in the autumn, and the road"
PATH = "/v1/responses"


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="any", max_retries=0) as made:
        yield made


def text_of(live, most=30, **settings):
    return live.alone(PROMPT, most, **settings).text


def numbers(events):
    return [event["sequence_number"] for event in events]


def test_the_stock_client_gets_the_text_of_generate(live, client):
    answer = client.responses.create(
        model="demo", input=PROMPT, max_output_tokens=30, extra_body={"seed": 4}, metadata={"a": "b"}
    )
    assert answer.output_text == text_of(live, seed=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.output_tokens, answer.metadata) == (30, {"a": "b"})
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_the_events_of_a_stream(live, client):
    with client.responses.stream(
        model="demo", input=PROMPT, max_output_tokens=30, extra_body={"seed": 4}, store=False
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *["response.output_text.delta"] * deltas,
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == text_of(live, seed=4)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(events[0].response.id)


def test_a_background_response_goes_on_without_anyone(live, client):
    made = client.responses.create(
        model="demo", input=PROMPT, max_output_tokens=30, background=True, extra_body={"seed": 4}
    )
    assert made.status == "queued"
    until(lambda: client.responses.retrieve(made.id).status not in ("queued", "in_progress"), "it does not end")
    ended = client.responses.retrieve(made.id)
    assert ended.output_text == text_of(live, seed=4)
    whole = live.events(f"{PATH}/{made.id}?stream=true", "GET", {"authorization": "Bearer any"})
    assert whole[1]["type"] == "response.queued"
    assert numbers(whole) == list(range(len(whole)))
    for after in (0, 3, len(whole) - 2):
        rest = client.responses.retrieve(made.id, stream=True, starting_after=after)
        assert [event.sequence_number for event in rest] == list(range(after + 1, len(whole)))


def test_a_left_background_stream_is_rejoined(live, client):
    """The first reader leaves in the middle; the second one gets the rest, and no event is missing or different."""
    before, run_id = [], None
    with client.responses.create(
        model="demo", input=PROMPT, max_output_tokens=180, background=True, stream=True, extra_body={"seed": 9}
    ) as stream:
        for event in stream:
            before.append(event)
            run_id = event.response.id if event.type == "response.created" else run_id
            if event.type == "response.output_text.delta":
                break
    after = list(client.responses.retrieve(run_id, stream=True, starting_after=before[-1].sequence_number))
    assert [event.sequence_number for event in before + after] == list(range(len(before) + len(after)))
    text = "".join(event.delta for event in before + after if event.type == "response.output_text.delta")
    assert text == text_of(live, 180, seed=9) == after[-1].response.output_text


def test_cached_tokens_are_those_of_the_run_when_it_is_read_from_the_folder(live, client):
    made = client.responses.create(model="demo", input=PROMPT, max_output_tokens=2)
    stored = live.service.known(made.id)
    stored.run.cached = 5  # prompts of this server are too short for the store of K/V
    live.service.store.save(stored)
    del live.service._stored[made.id], live.service._channels[made.id]
    assert client.responses.retrieve(made.id).usage.input_tokens_details.cached_tokens == 5


def test_cancelling(live, client):
    made = client.responses.create(
        model="demo", input=PROMPT, max_output_tokens=200, background=True, extra_body={"seed": 9}
    )
    until(lambda: live.service._stored[made.id].run.tokens, "it does not begin")
    cancelled = client.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert text_of(live, 200, seed=9).startswith(cancelled.output_text.rstrip("�"))
    assert client.responses.cancel(made.id).status == "cancelled"
    live.emptied()
    sync = client.responses.create(model="demo", input=PROMPT, max_output_tokens=2)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(sync.id)


def test_a_conversation_goes_on(live, client):
    """The second response continues the first one's turns; instructions are told again each time."""
    first = client.responses.create(model="demo", input="It was", max_output_tokens=10, extra_body={"seed": 1})
    asked = {"model": "demo", "input": [{"role": "user", "content": "Then"}], "max_output_tokens": 10}
    second = client.responses.create(
        **asked, previous_response_id=first.id, instructions="Chapter 1.", extra_body={"seed": 2}
    )
    prompt = f"Chapter 1.\n\nIt was\n\n{first.output_text}\n\nThen"
    assert second.output_text == live.alone(prompt, 10, seed=2).text
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**asked, previous_response_id="resp_" + "0" * 32)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": 5}, "input"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ],
)
def test_fields_that_cannot_be_honoured(live, changed, param):
    status, _, answer = live.send(PATH, {"input": PROMPT, "max_output_tokens": 5, **changed})
    assert (status, answer["error"]["param"]) == (400, param)


def test_runs_belong_to_the_key_that_made_them(live):
    made = live.send(PATH, {"input": PROMPT, "max_output_tokens": 2}, headers={"authorization": "Bearer mine"})[2]
    for key, status in (("mine", 200), ("theirs", 404)):
        headers = {"authorization": f"Bearer {key}"}
        assert live.send(f"{PATH}/{made['id']}", headers=headers)[0] == status
    assert live.send(f"{PATH}/{made['id']}", method="DELETE", headers={"authorization": "Bearer theirs"})[0] == 404
    for wrong in ("resp_../../etc", "..%2f..%2fetc%2fpasswd", "resp_" + "0" * 32):
        assert live.send(f"{PATH}/{wrong}")[0] == 404


def test_another_server_goes_on_where_one_went_down(tmp_path):
    """The first server ends in the middle of two background texts; its streams end with an error that says so, and the
    next server's events follow without a gap. A text in the foreground ends there."""
    state = tmp_path / "state"
    first = Live(state).start()
    asked = {"input": PROMPT, "max_output_tokens": 190, "seed": 9, "background": True}
    streamed = first.open(PATH, **asked, stream=True)
    other = first.post(PATH, **{**asked, "seed": 8})
    seen = b""
    while seen.count(b"output_text.delta") < 4:
        seen += streamed.recv(65536)
    first.stop()
    while more := streamed.recv(65536):
        seen += more
    streamed.close()
    frames = [json.loads(line[6:]) for line in seen.decode().split("\n") if line.startswith("data: ")]
    assert frames[-1]["error"]["code"] == "interrupted"
    before = frames[:-1]
    second = Live(state).start()
    run_id = before[0]["response"]["id"]
    path = f"{PATH}/{run_id}?stream=true&starting_after={before[-1]['sequence_number']}"
    after = second.events(path, "GET")
    assert numbers(before + after) == list(range(len(before) + len(after)))
    expected = text_of(second, 190, seed=9)
    assert "".join(event.get("delta", "") for event in before + after) == expected
    whole = second.events(f"{PATH}/{run_id}?stream=true", "GET")
    kept = [{**event, "response": None} for event in before]
    assert [{**event, "response": None} for event in whole[: len(before)]] == kept
    until(lambda: second.send(f"{PATH}/{other['id']}")[2]["status"] == "incomplete", "the other text does not end")
    answer = second.send(f"{PATH}/{other['id']}")[2]
    assert answer["output"][0]["content"][0]["text"] == text_of(second, 190, seed=8)
    assert (state / "runs").stat().st_mode & 0o777 == 0o700
    begun = time.monotonic()
    second.stop()
    assert time.monotonic() - begun < 30
