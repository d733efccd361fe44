"""A server under load: two keys, clients that leave, and the cost of serving.

`pytest -m long -s tests/serve/test_load.py` prints the measurements; they need a machine that does nothing else.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("uvicorn")
from live import WAIT, until
from process import ENVIRONMENT, Process

pytestmark = pytest.mark.long

PATH = "/v1/completions"
PROMPT = "It was late in the autumn, and the road"
SHORT = {"prompt": PROMPT, "max_tokens": 16, "seed": 1}
LENGTH = 8192
MOST = 1500
TURNS = int(os.environ.get("TURNS", 3))  # of the cost of serving
SHORTS, EVERY = int(os.environ.get("SHORTS", 1000)), 0.15  # short requests beside a long run, and seconds between two
KEYS = ("first", "second")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ["--max-length", str(LENGTH), "--port", "0", "--max-queue", "256"]
    made = Process(tmp_path_factory.mktemp("state"), [*flags, *(word for key in KEYS for word in ("--api-key", key))])
    yield made
    made.process.terminate()
    made.process.wait(WAIT)
    made.process.stdout.close()


def ask(server, body, key=KEYS[0]):
    """Seconds of a request, and its answer."""
    begun = time.perf_counter()
    answer = server.get(PATH, body, key)
    return time.perf_counter() - begun, answer


def test_two_keys_with_a_backlog_get_the_same(server):
    """One key has twice as many clients as the other, and longer texts. Prompts count: they are computed too."""
    counts, end = dict.fromkeys(KEYS, 0), time.perf_counter() + 60
    prompt = ask(server, SHORT)[1]["usage"]["prompt_tokens"]
    body, lock = {"prompt": PROMPT, "stream": True, "return_token_ids": True}, threading.Lock()

    def client(number):
        key, most = (KEYS[0], 32) if number % 3 == 0 else (KEYS[1], 150)
        while time.perf_counter() < end:
            connection, answer = server.open(PATH, {**body, "max_tokens": most}, key)
            computed = prompt
            for line in answer:
                if line.startswith(b"data: {") and time.perf_counter() < end:
                    with lock:
                        counts[key] += computed + len(json.loads(line[6:])["choices"][0]["token_ids"])
                    computed = 0
            connection.close()

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(client, range(24)))
    print(f"\ntokens of two keys with a backlog: {counts}")
    assert min(counts.values()) >= 0.8 * max(counts.values())


def test_clients_that_leave_at_every_stage(server):
    """64 of them: in the queue, in their prompts, in their texts; those that stay get their text."""
    expected = ask(server, {**SHORT, "max_tokens": 100})[1]["choices"][0]["text"]
    prompts = {"queue": PROMPT, "prefill": PROMPT * 200, "decode": PROMPT, "stay": PROMPT}
    texts = []

    def client(number):
        stage, streamed = ("queue", "prefill", "decode", "stay")[number % 4], number % 8 < 4
        body = {"prompt": prompts[stage], "max_tokens": 100, "seed": 1, "stream": streamed}
        if stage == "stay":
            texts.append(server.get(PATH, {**body, "stream": False}, KEYS[1])["choices"][0]["text"])
            return
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as made:
            head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEYS[number % 2]}\r\n"
            made.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            if stage == "decode" and streamed:
                made.recv(1)
            time.sleep({"queue": 0, "prefill": 0.05, "decode": 0.2}[stage])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))
    assert texts == [expected] * 16
    until(lambda: gauges(server) == {"running": 0, "waiting": 0}, "a run was left behind")
    assert ask(server, {**SHORT, "max_tokens": 100})[1]["choices"][0]["text"] == expected


def gauges(server):
    connection, answer = server.open("/metrics", key=KEYS[0])
    found = dict(re.findall(r"tokenswift:num_requests_(running|waiting)\{.*\} (.*)", answer.read().decode()))
    connection.close()
    return {name: float(value) for name, value in found.items()}


def writes(server, counts, stop):
    """A client that has long texts written, one after the other; it counts their tokens."""
    body = {"prompt": PROMPT, "max_tokens": LENGTH - 200, "ignore_eos": True, "stream": True, "return_token_ids": True}
    while not stop.is_set():
        connection, answer = server.open(PATH, body, KEYS[1])
        for line in answer:
            if line.startswith(b"data: {"):
                counts.append(len(json.loads(line[6:])["choices"][0]["token_ids"]))
            if stop.is_set():
                break
        connection.close()


def test_short_requests_beside_a_long_run(server):
    """One comes every 0.15 s, whether or not the last one has its answer; 95 of 100 wait at most 3 times as long."""

    def in_time(number):
        time.sleep(max(begun + number * EVERY - time.perf_counter(), 0))
        return ask(server, SHORT)[0]

    idle = [ask(server, SHORT)[0] for _ in range(100)]
    counts, stop = [], threading.Event()
    long_run = threading.Thread(target=writes, args=(server, counts, stop))
    long_run.start()
    until(lambda: len(counts) > 20, "no text was written")
    begun, before = time.perf_counter(), sum(counts)
    time.sleep(10)
    alone = (sum(counts) - before) / (time.perf_counter() - begun)
    begun, before = time.perf_counter(), sum(counts)
    with ThreadPoolExecutor(16) as pool:
        beside = list(pool.map(in_time, range(SHORTS)))
    pace = (sum(counts) - before) / (time.perf_counter() - begun)
    stop.set()
    long_run.join()
    worst = [statistics.quantiles(seconds, n=20)[-1] for seconds in (idle, beside)]
    print(f"\np95 of short requests: idle {worst[0]:.3f} s, beside a long run {worst[1]:.3f} s")
    print(f"tokens/s of the long run: alone {alone:.0f}, beside {SHORTS} short requests {pace:.0f}")
    assert worst[1] <= 3 * worst[0]
    assert pace >= 0.7 * alone


GENERATE = f"""
import sys, time
import tokenswift_jax as ts
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig
model = ts.load()
sampling = resolve_sampling({{"seed": 3}}, model.generation_config)
drafts = SpeculationConfig()
for _ in sys.stdin:
    begun = time.perf_counter()
    ts.generate(model, {PROMPT!r}, sampling, drafts, max_new_tokens={MOST}, ignore_eos=True)
    print(time.perf_counter() - begun, flush=True)
"""


def test_cost(server):
    """One client against `generate`, both in mode `auto`, and eight clients against one, in turns.

    The goals are 0.97 and 2.5; the bounds leave room for what else a machine does.
    """
    body = {"prompt": PROMPT, "max_tokens": MOST, "seed": 3, "ignore_eos": True}
    command = [sys.executable, "-c", GENERATE]
    rates = {"generate": [], "one": [], "eight": []}
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as beside:
        for turn in range(1 + TURNS):
            beside.stdin.write("\n")
            beside.stdin.flush()
            took = float(beside.stdout.readline())
            one, _ = ask(server, body)
            begun = time.perf_counter()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: ask(server, {**body, "seed": number}), range(8)))
            eight = time.perf_counter() - begun
            if turn:  # the first one compiles
                for name, rate in zip(rates, (MOST / took, MOST / one, 8 * MOST / eight), strict=True):
                    rates[name].append(rate)
        beside.stdin.close()
    found = {name: statistics.median(each) for name, each in rates.items()}
    print("\ntokens/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in found.items()))
    assert found["one"] >= 0.85 * found["generate"]
    assert found["eight"] >= 2 * found["one"]
