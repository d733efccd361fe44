"""A server under load: short requests beside a long run, two keys, clients that leave, and the cost of serving.

`pytest -m long -s tests/serve/test_load.py` prints the measurements; they need a machine that does nothing else.
"""

import json
import random
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
MOST = 600
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


def arriving(server, count, interval):
    """The sorted seconds of short requests, which arrive at random with a mean interval."""
    chance, done = random.Random(0), []
    with ThreadPoolExecutor(64) as pool:
        for _ in range(count):
            done.append(pool.submit(ask, server, SHORT, KEYS[1]))
            time.sleep(chance.expovariate(1 / interval))
        answers = [future.result() for future in done]
    assert all("choices" in answer for _, answer in answers)
    assert len({answer["choices"][0]["text"] for _, answer in answers}) == 1
    return sorted(seconds for seconds, _ in answers)


def p95(seconds):
    return seconds[int(0.95 * len(seconds))]


class LongRun:
    """A text that goes on until it is cancelled."""

    def __init__(self, server):
        self._server = server
        asked = {"prompt": PROMPT, "max_tokens": LENGTH - 100, "ignore_eos": True, "seed": 2}
        self.path = f"/v1/runs/{server.get('/v1/runs', asked, KEYS[0])['id']}"
        until(lambda: self.tokens > 50, "the long run does not begin")

    @property
    def tokens(self):
        return self._server.get(self.path, key=KEYS[0])["tokens"]

    def pace(self, during):
        """Tokens a second while a function runs."""
        begun, before = time.perf_counter(), self.tokens
        result = during()
        tokens = self.tokens - before
        assert self._server.get(self.path, key=KEYS[0])["state"] == "running"
        return tokens / (time.perf_counter() - begun), result

    def end(self):
        self._server.get(f"{self.path}/cancel", {}, KEYS[0])


def test_short_requests_beside_a_long_run(server):
    """1,000 short requests, at a fifth of the rate that an idle server can serve."""
    single = statistics.median(ask(server, SHORT)[0] for _ in range(40))
    interval = 5 * single
    idle = arriving(server, 200, interval)
    long = LongRun(server)
    alone, _ = long.pace(lambda: time.sleep(4))
    beside, seconds = long.pace(lambda: arriving(server, 1000, interval))
    long.end()
    times = f"p95 {1000 * p95(idle):.0f} ms idle, {1000 * p95(seconds):.0f} ms beside a long run"
    print(
        f"\nshort requests, one every {1000 * interval:.0f} ms: {times}, which has {beside:.0f} tokens/s of {alone:.0f}"
    )
    assert p95(seconds) <= 3 * p95(idle)
    assert beside >= 0.7 * alone


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


GENERATE = f"""
import sys, time
import tokenswift_jax as ts
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig
model = ts.load()
sampling = resolve_sampling({{"seed": 3}}, model.generation_config)
drafts = SpeculationConfig(mode="tokenswift", schedule="fused")
for _ in sys.stdin:
    begun = time.perf_counter()
    ts.generate(model, {PROMPT!r}, sampling, drafts, max_new_tokens={MOST}, ignore_eos=True)
    print(time.perf_counter() - begun, flush=True)
"""


def test_cost(server):
    """One client against `generate` in the same mode, and eight clients against one, in turns."""
    body = {"prompt": PROMPT, "max_tokens": MOST, "seed": 3, "ignore_eos": True}
    command = [sys.executable, "-c", GENERATE]
    rates = {"generate": [], "one": [], "eight": []}
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as beside:
        for turn in range(4):
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
    assert found["one"] >= 0.97 * found["generate"]
    assert found["eight"] >= 2.5 * found["one"]
