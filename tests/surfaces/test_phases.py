"""Phases without text: what is reported, and what a terminal, a log and `--quiet` show of it."""

import io
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from scripted import model, plain, play, prefilled
from test_progress import Clock, Screen

import tokenswift_jax as ts
from tokenswift_jax import model as model_module
from tokenswift_jax.cli import phases as phases_module
from tokenswift_jax.cli.generate import main
from tokenswift_jax.cli.phases import Phases
from tokenswift_jax.cli.progress import ProgressLine
from tokenswift_jax.engine import device_pace
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.device_pace import DevicePace
from tokenswift_jax.progress_report import phase, silent

ROOT = Path(__file__).parents[2]


class Reports(list):
    """A `Report` that keeps what it is told."""

    def __call__(self, phase, done, total, unit):
        self.append((phase, done, total, unit))

    def begun(self):
        return [name for name, done, *_ in self if not done]


def test_a_phase_begins_continues_and_ends_even_after_an_error():
    reported = Reports()
    with phase(reported, "sorting", 10, "cards") as so_far:
        so_far(4)
        so_far(12)  # a last chunk that is padded ends with the phase
    assert reported == [("sorting", done, 10, "cards") for done in (0, 4, 10)]
    reported.clear()
    with pytest.raises(KeyError), phase(reported, "sorting"):
        raise KeyError
    assert reported == [("sorting", 0, 1, ""), ("sorting", 1, 1, "")]


def test_a_real_run_reports_loading_prefill_and_each_program_by_its_name():
    reported = Reports()
    demo = ts.load(report=reported)
    loaded = [report for report in reported if report[0] == "loading the model"]
    sizes = [done for _, done, *_ in loaded]
    assert sizes == sorted(sizes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(demo.params))
    assert {report[2:] for report in loaded} == {(total, "bytes")}
    assert (sizes[0], sizes[-1]) == (0, total)
    assert len(sizes) > 10

    reported.clear()
    prompt = [5] * 1500
    speculation = ts.SpeculationConfig(mode="tokenswift", schedule="fused", node_budget=3)
    ts.generate(demo, prompt, None, speculation, max_new_tokens=2, ignore_eos=True, capacity=2304, report=reported)
    read = [report for report in reported if report[0] == "prefill"]
    assert {report[2:] for report in read} == {(len(prompt) - 1, "positions")}, "the last token is the root"
    done = [report[1] for report in read]
    assert done == sorted(set(done))
    assert (done[0], done[1], done[-1]) == (0, 256, 1499)
    names = ["compiling prefill", "compiling the state of new rows", "compiling plain decoding"]
    names += [f"{doing} the drafts of fused, 3 nodes" for doing in ("compiling", "preparing")]
    names += ["compiling fused, 3 nodes"]
    assert [name for name in reported.begun() if name != "prefill"] == names
    reported.clear()
    ts.generate(demo, prompt, None, speculation, max_new_tokens=2, ignore_eos=True, capacity=2304, report=reported)
    assert not any(name.startswith("compiling") for name in reported.begun()), "found, so not compiled"


def test_only_a_compilation_is_reported():
    reported = Reports()
    programs, function = CompileCache(reported), jax.jit(lambda values: values * 3)
    assert programs.run(function, jnp.float32(2), name="a product") == 6
    assert reported == [("compiling a product", 0, 1, ""), ("compiling a product", 1, 1, "")]
    programs.run(function, jnp.float32(4), name="a product")
    assert len(reported) == 2


def test_the_host_waits_about_as_often_as_a_person_reads(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(device_pace.time, "perf_counter", clock)

    def waits(pace, seconds, chunks):
        """The chunks that were waited for, of those that take so many seconds."""
        found = []
        for chunk in range(chunks):
            clock.now += seconds
            found.append(pace.wait(jnp.int32(chunk)))
        return [chunk for chunk, waited in enumerate(found) if waited]

    assert waits(DevicePace(print), 20.0, 4) == [0, 1, 2, 3], "of a large model each chunk"
    quick = waits(DevicePace(print), 0.01, 400)
    assert quick[:5] == [0, 2, 6, 14, 30]
    assert all(16 <= later - sooner <= 64 for sooner, later in pairwise(quick[5:]))
    assert waits(DevicePace(silent), 20.0, 4) == [], "for nobody"


def reported_to(stream, clock, enabled=True, **options):
    return Phases(ProgressLine(stream, 10, enabled, clock), stream, enabled=enabled, clock=clock, **options)


def test_a_terminal_shows_the_innermost_phase_and_its_seconds():
    screen, clock = Screen(4), Clock()
    phases = reported_to(screen, clock)

    def shown():
        return screen.lines()[1]

    phases("prefill", 0, 131072, "positions")
    assert shown() == "prefill: 0 of 131,072 positions, 0 s"
    clock.now += 1
    phases("compiling prefill", 0, 1, "")
    clock.now += 3
    phases.tick()
    assert shown() == "compiling prefill ... 3 s"
    phases("compiling prefill", 1, 1, "")
    assert shown() == "prefill: 0 of 131,072 positions, 4 s"
    phases("prefill", 20480, 131072, "positions")
    assert shown() == "prefill: 20,480 of 131,072 positions, 4 s"
    phases("prefill", 131072, 131072, "positions")
    clock.now += 5
    phases.tick()
    assert shown() == "prefill: 20,480 of 131,072 positions, 4 s", "ended: the next text takes the line away"
    phases("loading the model", 4_300_000_000, 16_100_000_000, "bytes")
    assert shown() == "loading the model: 4.3 of 16.1 GB, 0 s"
    phases("loading the model", 4_300_000, 17_100_000, "bytes")
    assert shown() == "loading the model: 4.3 of 17.1 MB, 0 s"


def test_a_log_gets_a_line_after_ten_silent_seconds():
    log, clock = io.StringIO(), Clock()
    phases = reported_to(log, clock)

    def after(seconds):
        clock.now += seconds
        phases.tick()
        lines = log.getvalue()
        log.truncate(0)
        log.seek(0)
        return lines

    assert after(60) == "", "no phase goes on"
    phases.printed()
    phases("compiling fused, 7 nodes", 0, 1, "")
    assert after(9) == ""
    assert after(1) == "compiling fused, 7 nodes ... 10 s\n"
    assert after(9) == ""
    assert after(1) == "compiling fused, 7 nodes ... 20 s\n"
    phases("compiling fused, 7 nodes", 1, 1, "")
    phases("prefill", 512, 4096, "positions")
    assert after(9) == ""
    assert after(2) == "prefill: 512 of 4,096 positions, 11 s\n"
    clock.now += 9
    phases.printed()  # text
    assert after(9) == ""
    phases("prefill", 4096, 4096, "positions")
    assert after(99) == ""


@pytest.mark.parametrize("stream", [Screen(4), io.StringIO()], ids=["terminal", "log"])
def test_quiet_shows_nothing(stream):
    clock = Clock()
    with reported_to(stream, clock, enabled=False) as phases:
        phases("prefill", 0, 4096, "positions")
        clock.now += 60
        phases.tick()
        assert threading.active_count() == len([one for one in threading.enumerate() if "phases" not in one.name])
    assert stream.getvalue() == ""


def test_a_command_tells_of_a_phase_that_reports_nothing_while_it_goes_on(monkeypatch, tmp_path, capsys):
    """A slow load in a log, and a slow compilation in the middle of the text: their lines begin where lines begin."""
    monkeypatch.setattr(phases_module, "_SECONDS_BETWEEN_LINES", 0.2)
    monkeypatch.setattr(phases_module, "_SECONDS_BETWEEN_TICKS", 0.02)
    loaded = model(tmp_path)

    def load(*arguments, report, **_):
        with phase(report, "loading the model", 2_000_000_000, "bytes") as so_far:
            so_far(1_000_000_000)
            time.sleep(0.5)
        return loaded

    monkeypatch.setattr(model_module, "load", load)
    run = play(monkeypatch, prefilled(300), plain([301]))
    first, second = run.steps

    def steps(self):
        yield first
        with phase(run.asked["report"], "compiling fused, 7 nodes"):
            time.sleep(0.5)
        yield second

    monkeypatch.setattr(type(run), "__iter__", steps)
    log = tmp_path / "log"
    with log.open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        patch.setattr(sys, "stderr", file)
        assert main(["--max-new-tokens", "2"]) == 0
    lines = log.read_text().splitlines()
    assert lines[0] == "loading the model: 1.0 of 2.0 GB, 0 s"
    at = next(index for index, line in enumerate(lines) if line.startswith("compiling"))
    assert lines[at] == "compiling fused, 7 nodes ... 0 s"
    assert lines[at - 1] == loaded.tokenizer.decode([300])
    assert loaded.tokenizer.decode([301]) in lines
    assert main(["--max-new-tokens", "2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_real_terminal_sees_each_phase(tmp_path):
    terminal, err = os.openpty()
    command = [sys.executable, "-m", "tokenswift_jax", "generate", "--mode", "autoregressive", "--max-new-tokens", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    os.close(err)
    shown = b""
    while b"prefilled" not in shown:  # the closing report's last line
        shown += os.read(terminal, 100_000)
    assert run.wait() == 0
    words = [b"loading the model: ", b"compiling prefill ... ", b"prefill: 0 of ", b"compiling plain decoding ... "]
    assert [word for word in words if word not in shown] == []


def test_a_line_of_phases_alone_ends_with_them():
    screen = Screen(3)
    phases = Phases(ProgressLine(screen, 0), screen, enabled=True, alone=True)
    phases("loading the model", 0, 1, "")
    assert screen.lines()[1].startswith("loading the model")
    phases("loading the model", 1, 1, "")
    assert screen.lines()[1] == ""
