"""A server in a process of its own."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from live import WAIT

ROOT = Path(__file__).resolve().parents[2]
# As for a person: without the quick compilation and the threads of tests/conftest.py.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT)}


class Process:
    """A server in a process of its own, once it is ready."""

    def __init__(self, state, flags=(), environment=()):
        command = [sys.executable, "-m", "tokenswift_jax.serve", *flags, "--state-dir", str(state)]
        own = ENVIRONMENT | dict(environment)
        self.process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True)
        self.port = 0
        for line in self.process.stdout:
            if found := re.match(r"listening on http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
            if line.startswith("ready"):
                return
        raise AssertionError("the server ended before it was ready")

    def kill(self, number):
        self.process.send_signal(number)
        status = self.process.wait(WAIT)
        self.process.stdout.close()
        return status

    def open(self, path, body=None, key="any"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        data = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json", "x-api-key": key}
        connection.request("GET" if body is None else "POST", path, data, headers)
        return connection, connection.getresponse()

    def get(self, path, body=None, key="any"):
        connection, answer = self.open(path, body, key)
        with contextlib.closing(connection):
            return json.loads(answer.read())
