"""Two real workers on one folder, one of them killed in a document: the other finishes all, with the texts of single
runs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tokenswift_jax as ts
from tokenswift_jax.documents.source import Document
from tokenswift_jax.sampling import resolve_sampling

ROOT = Path(__file__).parents[2]
PROMPTS = {"autumn": "It was late in the autumn, and the road", "once": "Once"}
PLAIN = ts.SpeculationConfig(mode="autoregressive")  # as below: one program serves the workers and this process
TOKENS = 960  # time to be killed in
SETTINGS = ["--max-new-tokens", str(TOKENS), "--ignore-eos", "--mode", "autoregressive", "--temperature", "0.9"]


def worker(folder, *more):
    words = ["--documents", folder / "in", "--output", folder / "out", *SETTINGS, "--seed", "5", *more]
    command = [sys.executable, "-m", "tokenswift_jax.generate", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_texts(folder):
    """Compares the texts of the folder with single runs."""
    report = {line["document"]: line for line in map(json.loads, (folder / "out/report.jsonl").open())}
    model = ts.load()
    given = {"temperature": 0.9, "seed": 5}
    for name, prompt in PROMPTS.items():
        sequence = Document(name, folder).sequence
        sampling = resolve_sampling({**given, "sequence": sequence}, model.generation_config)
        alone = ts.generate(model, prompt, sampling, PLAIN, max_new_tokens=TOKENS, ignore_eos=True)
        assert (folder / f"out/{name}.txt").read_text() == alone.text
        statistics = json.loads((folder / f"out/{name}.json").read_text())
        assert statistics["token_ids"] == alone.token_ids
        assert report[name]["status"] == "done"
        assert (report[name]["sequence"], report[name]["tokens"]) == (sequence, TOKENS)
    assert not [name for name in os.listdir(folder / "out") if "lease" in name]


@pytest.mark.long  # the main job has it with Ray
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_killed_worker_s_document_is_finished_by_the_other(tmp_path):
    (tmp_path / "in").mkdir()
    for name, prompt in PROMPTS.items():
        (tmp_path / f"in/{name}.txt").write_text(prompt)
    workers = {process.pid: process for process in (worker(tmp_path) for _ in range(2))}
    try:
        journal, lease = tmp_path / "out/autumn.journal", tmp_path / "out/.autumn.lease-1"
        while lines(journal) < 3:
            assert all(process.poll() is None for process in workers.values())
            time.sleep(0.002)
        killed = workers.pop(json.loads(lease.read_text())["pid"])
        killed.kill()
        killed.wait()
        assert not (tmp_path / "out/autumn.json").exists(), "killed too late to show anything"
        copied = lines(journal)
        (other,) = workers.values()
        shown = other.communicate(timeout=300)[1]
        assert other.returncode == 0, shown
    finally:
        for process in workers.values():
            process.kill()
    assert "2 of 2 documents done" in shown
    assert copied < lines(journal)
    check_texts(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="RAY IS MISSING: nothing ran on it")
def test_ray_starts_a_killed_worker_again(tmp_path):
    (tmp_path / "in").mkdir()
    for name, prompt in PROMPTS.items():
        (tmp_path / f"in/{name}.txt").write_text(prompt)
    words = ["--documents", tmp_path / "in", "--output", tmp_path / "out", *SETTINGS, "--seed", "5"]
    script = [sys.executable, ROOT / "examples/cluster/ray_documents.py", "2", *words]
    with (tmp_path / "shown").open("w") as shown:
        driver = subprocess.Popen([*map(str, script)], cwd=ROOT, stdout=shown, stderr=shown)
    try:
        journal, lease = tmp_path / "out/autumn.journal", tmp_path / "out/.autumn.lease-1"
        while lines(journal) < 3:
            assert driver.poll() is None, (tmp_path / "shown").read_text()
            time.sleep(0.002)
        os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)
        assert not (tmp_path / "out/autumn.json").exists(), "killed too late to show anything"
        assert driver.wait(timeout=300) == 0, (tmp_path / "shown").read_text()
    finally:
        driver.kill()
    assert "2 of 2 documents done" in (tmp_path / "shown").read_text()
    check_texts(tmp_path)
