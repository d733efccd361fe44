"""A process killed at a random moment, five times, each text resumed on another mesh: the text of one device."""

import functools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_two_processes import alone, children, finished, launched

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in Linux's list"),
]
TOKENS = 640
CHUNKS = TOKENS // 32  # lines of the journal, at most: a chunk has 32 tokens or more

MESHES = ("model=4", "data=2,model=2", "model=2,context=2", "context=4", "model=2")


@functools.cache
def expected():
    return alone(TOKENS).token_ids


@pytest.mark.parametrize("number", range(len(MESHES)))
def test_a_text_goes_on_on_another_mesh(tmp_path, number, capsys):
    """The moment: in one of five runs while the processes start or compile, else within a random chunk of the text."""
    seed = int(os.environ.get("KILL_SEED", time.time_ns()))
    moments = random.Random(seed)
    victim, lines, pause = moments.randrange(2), moments.randrange(CHUNKS * 3 // 4), moments.uniform(0, 0.3)
    starting = moments.uniform(1, 15) if moments.randrange(5) == 0 else None
    first, second = MESHES[number], MESHES[(number + 1 + moments.randrange(len(MESHES) - 1)) % len(MESHES)]
    journal, more = tmp_path / "j", ["--mode", moments.choice(["auto", "autoregressive"]), "--journal", tmp_path / "j"]

    def written():
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    process = launched(tmp_path, first, TOKENS, *more, devices=2)
    begun = time.monotonic()
    while time.monotonic() - begun < starting if starting else written() <= lines:
        assert process.poll() is None, f"KILL_SEED={seed}: the text ended before its moment: {process.communicate()}"
        time.sleep(0.01)
    time.sleep(pause)
    os.kill(children(process)[victim], signal.SIGKILL)
    _, shown = finished(process)
    where = f"KILL_SEED={seed}: {first}, process {victim} killed after {written()} lines, resumed on {second}"
    assert process.returncode == 128 + signal.SIGKILL, (where, shown)
    assert f"process {victim} (pid " in shown, where
    before = written()
    process = launched(tmp_path, second, TOKENS, *more, "--resume", devices=2)
    _, shown = finished(process)
    assert process.returncode == 0, (where, shown)
    assert json.loads((tmp_path / "stats.json").read_text())["token_ids"] == expected(), where
    assert written() > before, where
    with capsys.disabled():
        print(f"\n{where}: the same {TOKENS} tokens", flush=True)
