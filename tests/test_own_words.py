"""Errors in this package's words: no library's codes or rules, and advice that helps in the case at hand."""

import re
import socket
from types import SimpleNamespace

import numpy as np
import pytest

from tokenswift_jax.checkpoint import resolve
from tokenswift_jax.errors import UserError
from tokenswift_jax.training import state_memory
from tokenswift_jax.training.evaluation import evaluate
from tokenswift_jax.training.settings import TrainingSettings, read_settings
from tokenswift_jax.training.shares import ONE_DEVICE


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=rf"cannot read the configuration {tmp_path}/c: No such file or directory$"):
        read_settings(tmp_path / "c", {})


def test_keys_that_are_not_there(tmp_path):
    pytest.importorskip("starlette")
    from tokenswift_jax.serve import cli

    options = cli._parser("serve").parse_args(["--api-key-file", str(tmp_path / "k")])
    with pytest.raises(UserError, match=rf"^api_key_file {tmp_path}/k: No such file or directory$"):
        cli._keys(options)


def test_an_address_in_use_or_none():
    pytest.importorskip("uvicorn")
    from tokenswift_jax.serve.server import listening

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: Address already in use; name another$"):
            listening("127.0.0.1", port)
    with pytest.raises(UserError, match="port 99999: a port is a number from 0 to 65535; name another"):
        listening("127.0.0.1", 99999)


@pytest.mark.parametrize("name", ["a/b.git", "a--b/c", "a/b-", "a/" + "b" * 100])
def test_a_name_that_the_hub_refuses(name):
    with pytest.raises(
        UserError, match=rf"^no directory {re.escape(name)}, and .* is no hub id either, which reads owner"
    ):
        resolve(name)


def test_an_evaluation_beyond_the_positions():
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    with pytest.raises(UserError, match="prompt_tokens 450 and continuation 100 are more than the 512 pos") as raised:
        evaluate(model, np.zeros((1, 550), np.int32), prompt_tokens=450, continuation=100)
    assert raised.value.arguments == ("prompt_tokens", "continuation")


@pytest.mark.parametrize(("devices", "advice"), [(1, "no device left to share them"), (8, "mesh=data=N stores a part")])
def test_memory_for_a_run_without_a_mesh(monkeypatch, devices, advice):
    monkeypatch.setattr(state_memory, "state_bytes", lambda *_: 10**10)
    monkeypatch.setattr(state_memory, "least_free", lambda _: (10**9, "cpu:0"))
    monkeypatch.setattr(state_memory.jax, "device_count", lambda: devices)
    with pytest.raises(UserError, match=f"state on one device, and cpu:0 has 1 GB free: 9 GB are missing; .*{advice}"):
        state_memory.check_memory(None, TrainingSettings(), np.dtype(np.float32), ONE_DEVICE)
