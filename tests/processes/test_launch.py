"""The launcher: it names the process that failed, ends the others, passes signals on and returns the status."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tokenswift_jax.cli import launch
from tokenswift_jax.cli.launch import main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")


@pytest.fixture
def programs(monkeypatch):
    """Runs Python programs, one for each process, in place of the command."""
    start = subprocess.Popen

    def run(*programs, words=("generate",), before=None):
        left, started = list(programs), []

        def popen(command, **more):
            assert command[1:4] == ["-m", "tokenswift_jax", "generate"]
            started.append(start([sys.executable, "-c", left.pop(0)], **more))
            if not left and before is not None:
                threading.Thread(target=before, args=(started,)).start()
            return started[-1]

        monkeypatch.setattr(launch.subprocess, "Popen", popen)
        status = main(["-n", str(len(programs)), *words])
        assert all(process.poll() is not None for process in started)
        return status

    monkeypatch.setattr(launch, "_GRACE", 0.3)
    return run


WAIT = "import time; time.sleep(60)"


def test_all_end(programs, capfd):
    # One write, since an unbuffered print makes several, between which the other process may print.
    line = "os.environ['JAX_PROCESS_ID'] + ' ' + os.environ['JAX_NUM_PROCESSES'] + chr(10)"
    program = f"import os; os.write(1, ({line}).encode())"
    assert programs(program, program) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 2", "1 2"]


def test_a_killed_process_is_named_and_the_others_are_ended(programs, capfd):
    assert programs(WAIT, "import os; os.kill(os.getpid(), 9)", WAIT) == 128 + 9
    shown = capfd.readouterr().err
    assert "process 1 (pid " in shown
    assert "was ended by SIGKILL; ended process 0, 2 too, since they work together" in shown


def test_the_killed_process_comes_before_those_that_its_end_brings_down():
    assert sorted([1, -signal.SIGSEGV, 0, -signal.SIGKILL, -signal.SIGABRT], key=launch._rank)[0] == -signal.SIGKILL
    assert launch._rank(-signal.SIGSEGV) < launch._rank(1)


def test_an_error_s_status_is_the_launcher_s(programs, capfd):
    assert programs("raise SystemExit(2)", WAIT) == 2
    assert "ended with status 2; ended process 1 too" in capfd.readouterr().err
    assert programs("raise SystemExit(130)", "pass") == 130  # such as after Ctrl-C: all have ended by themselves
    assert capfd.readouterr().err == ""


def test_workers_of_documents_go_on_without_the_dead(programs, capfd):
    slow = "import time; time.sleep(0.6)"
    words = ("generate", "--documents", "in", "--output", "out")
    begun = time.monotonic()
    assert programs("import os; os.kill(os.getpid(), 15)", slow, words=words) == 128 + 15
    assert time.monotonic() - begun > 0.6
    shown = capfd.readouterr().err
    assert "was ended by SIGTERM" in shown
    assert "too" not in shown


def test_a_signal_is_passed_on_once(programs, capfd):
    program = (
        "import signal, sys, time; seen = [];"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1)); print('ready', file=sys.stderr, flush=True);"
        "[time.sleep(0.02) for _ in range(500) if not seen]; time.sleep(0.2); sys.exit(40 + len(seen))"
    )

    def interrupt(started):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    assert programs(program, program, before=interrupt) == 41


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "2"], "starts the command generate, and none is given"),
        (["-n", "2", "train"], "starts the command generate, and 'train' is not it"),
        (["generate"], "required: -n/--processes"),
        (["-n", "0", "generate"], "not a whole number of at least 1"),
    ],
)
def test_wrong_words_are_one_line(words, message, capsys):
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_gpus_are_shared_out():
    found = launch._environments(2, {"CUDA_VISIBLE_DEVICES": "3,4,5,6"}, ["3", "4", "5", "6"])
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["3,4", "5,6"]
    assert len({one["JAX_COORDINATOR_ADDRESS"] for one in found}) == 1
    with pytest.raises(ValueError, match="2 processes need a GPU each, and there are 1"):
        launch._environments(2, {}, ["0"])
