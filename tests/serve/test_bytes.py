"""The bytes on the wire: SSE frames, whole characters, pings, clients that leave at any moment."""

import asyncio
import json
import re
import time

import pytest
from live import until

pytest.importorskip("starlette")
from tokenswift_jax.serve.sse import DONE, PING, EventStream, GoneError, frame, until_gone

PROMPT = "It was late in the autumn, and the road"
FRAME = re.compile(rb"data: (\{[^\n]*\}|\[DONE\])\n\n")


def read_all(made):
    """Everything that comes over a socket, without the chunks of HTTP."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        more = made.recv(65536)
        assert more, "the server closed the connection"
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            return head, body
        body, rest = body + rest[:count], rest[count + 2 :]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_frames_of_one_line_and_an_end_mark(live, path):
    """No ids, no retry, no empty data, no comments that end in a blank line: each of them breaks stock clients."""
    asked = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": [{"role": "user", "content": PROMPT}]}
    with live.open(path, **asked, max_tokens=40, seed=1, stream=True, n=2) as made:
        head, body = read_all(made)
    assert b"content-type: text/event-stream; charset=utf-8" in head.lower()
    assert b"x-accel-buffering: no" in head.lower()
    assert FRAME.sub(b"", body) == b""
    frames = FRAME.findall(body)
    assert frames[-1] == b"[DONE]"
    assert frames.count(b"[DONE]") == 1
    for one in frames[:-1]:
        assert json.loads(one)["choices"]


def test_characters_of_several_tokens_are_whole_in_every_frame(live):
    """The demo spells most of these characters with several tokens; greedy copies of them come out in one piece."""
    ids = live.model.tokenizer("日本語 naïve 😀")["input_ids"]
    asked = {"prompt": "x", "max_tokens": len(ids), "allowed_token_ids": sorted(set(ids)), "temperature": 3, "seed": 2}
    with live.open("/v1/completions", **asked, stream=True) as made:
        _, body = read_all(made)
    texts = [json.loads(one)["choices"][0]["text"] for one in FRAME.findall(body)[:-1]]
    whole = live.post("/v1/completions", **asked)["choices"][0]["text"]
    assert "".join(texts) == whole
    body.decode("utf-8")


def test_line_ends_stay_inside_a_frame():
    text = "a\nb\r\nc\u2028d\x85e"
    assert frame({"text": text}).count(b"\n") == 2
    assert json.loads(FRAME.fullmatch(frame({"text": text}))[1])["text"] == text
    assert frame({}, "kind") == b"event: kind\ndata: {}\n\n"


def stream(frames, gone_after=None, **options):
    """The bytes that a response sends for a generator; the client leaves after some seconds."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.sleep(10 if gone_after is None else gone_after)
        return {"type": "http.disconnect"}

    asyncio.run(EventStream(frames(), **options)({"type": "http"}, receive, send))
    return b"".join(message.get("body", b"") for message in sent), sent


def test_pings_have_one_newline_and_disturb_no_decoder():
    async def frames():
        await asyncio.sleep(0.25)
        yield frame({"a": 1})
        await asyncio.sleep(0.25)
        yield DONE

    body, sent = stream(frames, ping_seconds=0.1)
    assert sent[0]["type"] == "http.response.start"
    assert PING == b": ping\n"
    assert body.replace(PING, b"") == frame({"a": 1}) + DONE
    assert body.count(PING) >= 3
    openai = pytest.importorskip("openai")
    events = list(openai._streaming.SSEDecoder().iter_bytes(iter([body])))
    assert [event.data for event in events] == ['{"a":1}', "[DONE]"]


def test_a_client_that_leaves_closes_the_generator():
    closed, gone = [], []

    async def frames():
        try:
            yield frame({"a": 1})
            await asyncio.sleep(30)
        finally:
            closed.append(True)

    begun = time.monotonic()
    body, _ = stream(frames, gone_after=0.1, on_gone=lambda: gone.append(True))
    assert time.monotonic() - begun < 5
    assert (body, closed, gone) == (frame({"a": 1}), [True], [True])


def test_work_is_cancelled_when_nobody_waits_for_it():
    ended = []

    async def work():
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    async def receive():
        return {"type": "http.disconnect"}

    async def main():
        with pytest.raises(GoneError):
            await until_gone(receive, work())

    asyncio.run(main())
    assert ended


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("moment", ["queue", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_place(live, moment, streamed):
    """In the queue, in the middle of its prompt, in the middle of its text."""
    counts, others = live.service.scheduler, []
    if moment == "queue":
        others = [live.open("/v1/completions", prompt=PROMPT, max_tokens=200, stream=True) for _ in range(2)]
        until(lambda: counts.counts["running"] == 2, "the slots are free")
    asked = {"prompt": "A" * (150 if moment == "prefill" else 3), "max_tokens": 80, "stream": streamed}
    made = live.open("/v1/completions", **asked)
    if moment != "prefill":
        wanted = "waiting" if moment == "queue" else "running"
        until(lambda: counts.counts[wanted] or not others, "the request did not arrive")
    made.close()
    for other in others:
        other.close()
    live.emptied()
    assert live.post("/v1/completions", prompt=PROMPT, max_tokens=2)["choices"]


def test_a_slow_reader_delays_nobody(live):
    """It reads nothing; its run ends all the same, and another client has its answer meanwhile."""
    slow = live.open("/v1/completions", prompt=PROMPT, max_tokens=200, seed=1, stream=True)
    quick = live.post("/v1/completions", prompt=PROMPT, max_tokens=20, seed=3)
    live.emptied()
    assert quick["choices"][0]["text"] == live.alone(PROMPT, 20, seed=3).text
    _, body = read_all(slow)
    texts = [json.loads(one)["choices"][0]["text"] for one in FRAME.findall(body)[:-1]]
    assert "".join(texts) == live.alone(PROMPT, 200, seed=1).text
    slow.close()
