"""A server in this process, on the bundled demo, for clients in other threads."""

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import replace

import tokenswift_jax as ts
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.serve.app import create_app
from tokenswift_jax.serve.cli import _with_template
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.pool import Pool, PoolSize
from tokenswift_jax.serve.server import Server, listening
from tokenswift_jax.serve.service import Service
from tokenswift_jax.speculation import SpeculationConfig

LENGTH = 240
PROMPT = "It was late in the autumn, and the road"
RUNS = "/v1/runs"
WAIT = 120  # seconds; a lost answer fails the test


class Live:
    """A server that listens.

    Attributes:
      model, service: what it serves.
      port: where it listens.
    """

    def __init__(self, state_dir, slots=2, max_queue=64, keys=(), **limits):
        self.model = _with_template(ts.load(), None)
        plans = PlanSet(self.model.config, SpeculationConfig(), (SamplingFeatures.FILTERED,))
        pools = [Pool(self.model, PoolSize(slots, LENGTH), plans)]
        self.service = Service(self.model, pools, name="demo", state_dir=state_dir, max_queue=max_queue)
        self.service.limits = replace(self.service.limits, **limits)
        listener = listening("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        app = create_app(self.service, keys=keys, hosts=("127.0.0.1", "localhost"))
        self.server = Server(app, self.service, listener)
        self._thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)

    def start(self):
        self._thread.start()
        until(lambda: self.service.ready, "the server is not ready")
        return self

    def stop(self):
        self.service.drain()
        self.server.should_exit = True
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def alone(self, prompt, most, **settings):
        """The text that `generate` writes by itself with the settings of a request."""
        sampling = resolve_sampling(settings, self.model.generation_config)
        plain = SpeculationConfig(mode="autoregressive")
        return ts.generate(self.model, prompt, sampling, plain, max_new_tokens=most)

    def send(self, path, body=None, method=None, headers=None):
        """Status, headers and body of an answer; JSON is parsed."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)) as connection:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            method = method or ("GET" if data is None else "POST")
            connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            if content and answer.headers.get("content-type", "") == "application/json":
                content = json.loads(content)
            return answer.status, answer.headers, content

    def post(self, path, **body):
        """The object of an answer that is a success."""
        status, _, answer = self.send(path, body)
        assert status == 200, answer
        return answer

    def open(self, path, **body):
        """A socket on which a request has been sent."""
        data = json.dumps(body).encode()
        made = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        made.sendall(head.encode() + data)
        return made

    def events(self, path, method="POST", headers=None, **body):
        """The data of a streamed answer, parsed; the end mark is left out."""
        _, _, content = self.send(path, body if method == "POST" else None, method, headers)
        frames = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(frame) for frame in frames if frame != "[DONE]"]

    def emptied(self):
        """Waits until no run waits or decodes."""
        until(lambda: not any(self.service.scheduler.counts.values()), "a run was left behind")


def until(condition, complaint):
    """Waits for a condition."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.02)


def begin(live, most=60, **settings):
    """The id of a new run."""
    status, _, run = live.send(RUNS, {"prompt": PROMPT, "max_tokens": most, **settings})
    assert status == 201, run
    return run["id"]


def state(live, run_id):
    """A run as the server describes it."""
    return live.send(f"{RUNS}/{run_id}")[2]


def ended(live, run_id):
    """A run at its end."""
    until(lambda: state(live, run_id)["state"] in ("finished", "cancelled", "failed"), "it does not end")
    return state(live, run_id)


def text(live, run_id):
    """The text of a run."""
    return live.send(f"{RUNS}/{run_id}/text.txt")[2].decode()


def follow(live, run_id, after=-1):
    """The text that a reader has who obeys `offset`, and the events."""
    seen, events = "", live.events(f"{RUNS}/{run_id}/events?after={after}", "GET")
    for event in events:
        seen = seen[: event["offset"]] + event["text"]
    return seen, events
