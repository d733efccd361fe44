"""A server killed at any moment: its background texts go on after a restart, and nothing that a client saw changes."""

import contextlib
import http.client
import json
import os
import random
import signal
import time

import pytest
from live import WAIT
from process import Process

import tokenswift_jax as ts
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig

pytest.importorskip("uvicorn")

# 20 kills: KILLS=20 pytest tests/serve/test_killed.py
KILLS = int(os.environ.get("KILLS", 1))
PROMPT = "It was late in the autumn, and the road"
TOKENS = 400 + 100 * KILLS  # a life between two kills writes fewer than 100
SMALL = ("--max-length", str(TOKENS + 40), "--slots", "2", "--mode", "autoregressive", "--port", "0")


def events(answer, seconds=None):
    """The events of a stream, for so long; a server that is killed breaks it."""
    found, end = [], None if seconds is None else time.monotonic() + seconds
    with contextlib.suppress(http.client.HTTPException, ConnectionError):
        for line in answer:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
            if end is not None and time.monotonic() > end:
                break
    return [event for event in found if "error" not in event]


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_server_loses_nothing_that_it_sent(tmp_path):
    """One text is streamed and rejoined after each kill; another has no reader. SIGTERM ends the last server."""
    model, chance = ts.load(), random.Random(0)
    state, asked = tmp_path / "state", {"input": PROMPT, "max_output_tokens": TOKENS, "background": True}
    server = Process(state, SMALL)
    quiet = server.get("/v1/responses", {**asked, "seed": 8})
    connection, answer = server.open("/v1/responses", {**asked, "seed": 9, "stream": True})
    seen, kills = [], 0
    while kills < KILLS:
        seen += events(answer, chance.uniform(0, 0.3))
        server.kill(signal.SIGKILL)
        kills += 1
        connection.close()
        server = Process(state, SMALL)
        if not seen:  # killed before the first event reached anyone: ask again
            connection, answer = server.open("/v1/responses", {**asked, "seed": 9, "stream": True})
            continue
        run_id = seen[0]["response"]["id"]
        path = f"/v1/responses/{run_id}?stream=true&starting_after={seen[-1]['sequence_number']}"
        connection, answer = server.open(path)
    seen += events(answer)
    connection.close()
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    texts = {}
    for seed in (8, 9):
        sampling = resolve_sampling({"seed": seed}, model.generation_config)
        plain = SpeculationConfig(mode="autoregressive")
        texts[seed] = ts.generate(model, PROMPT, sampling, plain, max_new_tokens=TOKENS).text
    assert "".join(event.get("delta", "") for event in seen) == texts[9]
    end = time.monotonic() + WAIT
    while server.get(f"/v1/responses/{quiet['id']}")["status"] in ("queued", "in_progress"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.get(f"/v1/responses/{quiet['id']}")["output"][0]["content"][0]["text"] == texts[8]
    begun = time.monotonic()
    assert server.kill(signal.SIGTERM) in (0, -signal.SIGTERM)  # uvicorn passes the signal on at its end
    assert time.monotonic() - begun < 30
