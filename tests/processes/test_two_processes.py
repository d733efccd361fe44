"""Texts of two real processes: the tokens of one device, one killed in the text and resumed by one process, and
processes that were not started alike."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import compilation
import pytest

import tokenswift_jax as ts
from tokenswift_jax.sampling import resolve_sampling

pytestmark = pytest.mark.long  # each starts two processes that compile
ROOT = Path(__file__).parents[2]
PROMPT = "It was late in the autumn, and the road"
GIVEN = {"temperature": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "penalty_window": 64, "seed": 5}
FLAGS = [word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def environment(devices):
    flags = os.environ["XLA_FLAGS"].replace(compilation.DEVICES, f"{compilation.DEVICES[:-1]}{devices}")
    return os.environ | {"XLA_FLAGS": flags}


def launched(folder, mesh, tokens, *more, devices=1):
    words = ["-n", "2", "generate", "--prompt", PROMPT, "--max-new-tokens", tokens, "--ignore-eos", "--mesh", mesh]
    words += [*FLAGS, "--stats", folder / "stats.json", *more]
    command = [sys.executable, "-m", "tokenswift_jax.launch", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def alone(tokens):
    model = ts.load()
    sampling = resolve_sampling(GIVEN, model.generation_config)
    plain = ts.SpeculationConfig(mode="autoregressive")
    return ts.generate(model, PROMPT, sampling, plain, max_new_tokens=tokens, ignore_eos=True)


def finished(process):
    try:
        text, shown = process.communicate(timeout=300)
    finally:
        process.kill()
    return text, shown


def children(process):
    """The process ids of the launcher's children, in the order in which it started them."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()]


@pytest.mark.parametrize("mode", ["autoregressive", "auto"])
def test_two_processes_write_the_text_of_one_device(tmp_path, mode):
    """With mode auto, process 0 chooses plans by its own measurements."""
    process = launched(tmp_path, "model=2", 48, "--mode", mode)
    text, shown = finished(process)
    assert process.returncode == 0, shown
    expected = alone(48)
    assert json.loads((tmp_path / "stats.json").read_text())["token_ids"] == expected.token_ids
    assert text == expected.text
    assert "2 processes, 2 devices, 1 of them here" in shown


@pytest.mark.parametrize("mesh", ["model=4", "data=2,model=2", "data=4"])
def test_two_processes_with_two_devices_each(tmp_path, mesh):
    more = ["--mode", "tokenswift", "--schedule", "auto"]
    process = launched(tmp_path, mesh, 48, *more, devices=2)
    _, shown = finished(process)
    assert process.returncode == 0, shown
    assert json.loads((tmp_path / "stats.json").read_text())["token_ids"] == alone(48).token_ids


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in Linux's list")
@pytest.mark.parametrize(("victim", "named"), [(0, signal.SIGKILL), (1, signal.SIGKILL), ("launcher", signal.SIGINT)])
def test_a_text_goes_on_in_one_process(tmp_path, victim, named):
    """After a process was killed, or all were interrupted: the journal of two processes serves one on one device."""
    journal, tokens = tmp_path / "j", 4000
    process = launched(tmp_path, "model=2", tokens, "--journal", journal, "--mode", "autoregressive")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    if victim == "launcher":
        process.send_signal(named)
    else:
        os.kill(children(process)[victim], named)
    _, shown = finished(process)
    if victim == "launcher":
        assert process.returncode == 130, shown
        assert json.loads((tmp_path / "stats.json").read_text())["finish_reason"] == "interrupted"
    else:
        assert process.returncode == 128 + named, shown
        assert f"process {victim} (pid " in shown
        assert "was ended by SIGKILL" in shown
    written = journal.read_bytes().count(b"\n")
    assert written < tokens // 32
    more = 32 * (written + 2)
    model = ts.load()
    sampling = resolve_sampling(GIVEN, model.generation_config)
    again = ts.generate(model, PROMPT, sampling, max_new_tokens=more, ignore_eos=True, journal=journal, resume=True)
    assert again.token_ids == alone(more).token_ids


def test_a_journal_of_one_process_goes_on_in_two(tmp_path):
    model = ts.load()
    sampling = resolve_sampling(GIVEN, model.generation_config)
    ts.generate(model, PROMPT, sampling, max_new_tokens=20, ignore_eos=True, journal=tmp_path / "j")
    process = launched(tmp_path, "data=2", 48, "--journal", tmp_path / "j", "--resume")
    _, shown = finished(process)
    assert process.returncode == 0, shown
    assert json.loads((tmp_path / "stats.json").read_text())["token_ids"] == alone(48).token_ids


def test_processes_that_were_not_started_alike(tmp_path):
    processes = []
    port = 20000 + os.getpid() % 20000
    for number, seed in enumerate("56"):
        words = ["--prompt", "x", "--mesh", "model=2", "--seed", seed, "--coordinator", f"127.0.0.1:{port}"]
        words += ["--num-processes", "2", "--process-id", str(number), "--max-new-tokens", "8"]
        command = [sys.executable, "-m", "tokenswift_jax.generate", *words]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment(1), stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, shown = finished(process)
        assert process.returncode == 2
        assert "the processes differ: --seed is 6 in process 1 and 5 in process 0; start all of them alike" in shown
