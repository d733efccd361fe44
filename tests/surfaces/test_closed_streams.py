"""Readers that leave (`| head`), streams that are closed (`>&-`) and full disks: no traceback, statuses as of other
programs. Each command runs in a process of its own; what takes it long is replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.checkpoints_made_here import FAMILIES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIGPIPE = 141  # what a shell shows of `cat` in `cat FILE | head`
BEGIN = "import pytest, sys; from pathlib import Path; import scripted; patch = pytest.MonkeyPatch();"
# A run without an end, a table, a training that tells of its steps; a converter as it is.
GENERATE = (
    f"{BEGIN} import tokenswift_jax.model as m; loaded = scripted.model(Path('.'));"
    "patch.setattr(m, 'load', lambda *a, **b: loaded);"
    "scripted.play(patch, scripted.prefilled(300), *[scripted.plain([300] * 2000) for _ in range(400)]);"
    "from tokenswift_jax.cli.generate import main"
)
EVALUATE = (
    f"{BEGIN} import tokenswift_jax.model as m, tokenswift_jax.training.evaluation as e;"
    "import tokenswift_jax.training.shards as s, tokenswift_jax.training.held_out as h;"
    "loaded = scripted.model(Path('.')); object.__setattr__(loaded.config, 'num_draft_heads', 3);"
    "patch.setattr(m, 'load', lambda *a, **b: loaded);"
    "patch.setattr(s, 'tokenise', lambda *a, **b: type('Corpus', (), {'documents': 1, 'broken': 0}));"
    "patch.setattr(h, 'windows', lambda *a: None);"
    "result = type('Result', (), {'table': lambda self: 'head 1 of 3' * 3});"
    "patch.setattr(e, 'evaluate', lambda *a, **b: result());"
    "from tokenswift_jax.evaluate import main"
)
TRAIN = (
    f"{BEGIN} import tokenswift_jax.training.trainer as t;"
    "steps = lambda *a, say, **b: [print('step', n, file=say) for n in range(3)] and 'heads';"
    "patch.setattr(t, 'train', steps);"
    "from tokenswift_jax.training.cli import main"
)
CONVERT = "import sys; from tokenswift_jax.cli.commands import main"
# A server says that it compiles and is ready, and a signal ends it; its engine and its sockets are replaced.
SERVE = (
    f"{BEGIN} import asyncio, os, signal, socket, uvicorn; import tokenswift_jax.serve.cli as c;"
    "from types import SimpleNamespace as S; from threading import Event;"
    "import tokenswift_jax.serve.server as s, tokenswift_jax.serve.app as a, tokenswift_jax.model as m;"
    "ready = Event(); scheduler = S(error=None, ready=ready);"
    "engine = lambda *x: [x[-1]('compiling a program', 0, 1, ''), ready.set(), S(scheduler=scheduler)][-1];"
    "patch.setattr(c, '_service', engine); patch.setattr(m, 'load', lambda *x, **y: S(tokenizer=None));"
    "patch.setattr(c, '_mesh_texts', lambda *x: []); patch.setattr(a, 'create_app', lambda *x, **y: None);"
    "patch.setattr(uvicorn.Server, 'startup', lambda *x, **y: asyncio.sleep(0));"
    "patch.setattr(s.Server, 'run', lambda self, x: asyncio.run(told(self)))\n"
    "async def told(server): await server.startup(); await server._announcer\n"
    "from tokenswift_jax.serve.cli import main"
)
RUNS = {
    "generate": (GENERATE, ["--max-new-tokens", "900000", "--stats", "s"]),
    "evaluate": (EVALUATE, ["--data", "x"]),
    "train": (TRAIN, ["--data", "x", "--output", "y"]),
    "convert": (CONVERT, ["convert", "hf", str(FAMILIES / "llama2"), "out"]),
    "help": (CONVERT, ["generate", "--help"]),
    "commands": (CONVERT, ["--help"]),
}
# These write messages alone; of the processes that `launch` starts, both have no folder to read.
LAUNCH = (CONVERT, ["launch", "-n", "2", "generate", "--documents", "nowhere"])
SERVER = (SERVE, ["--port", "0"])
WORKER = (GENERATE, ["--documents", "texts", "--output", "o", "--max-new-tokens", "1"])


def run(folder, name, unbuffered=False, closed=(), **streams):
    """Runs a command with these streams, some closed; (status, stdout, stderr), a stream "" where it was given."""
    program, arguments = RUNS[name]
    path = os.pathsep.join(map(str, (HERE, ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    environment |= {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    closing = " ".join(f"{number}>&-" for number in closed)
    words = ["bash", "-c", f'exec "$@" {closing}', "bash", sys.executable, "-c"]
    words.append(f"{program}; from tokenswift_jax.cli.command import leave; leave(main())")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    done = subprocess.run([*words, *arguments], cwd=folder, env=environment, text=True, check=False, **streams)
    return done.returncode, done.stdout or "", done.stderr or ""


@pytest.fixture
def nobody():
    """The writing end of a pipe whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize(("name", "unbuffered"), [*((name, False) for name in RUNS), ("generate", True)])
def test_a_reader_of_stdout_that_has_left_ends_the_command_quietly(tmp_path, nobody, name, unbuffered):
    status, _, announced = run(tmp_path, name, unbuffered=unbuffered, stdout=nobody)
    assert status == SIGPIPE, announced
    assert "Traceback" not in announced
    assert "BrokenPipe" not in announced
    assert "rror" not in announced
    if name == "convert":
        assert (tmp_path / "out" / "config.json").exists(), "it was written before it was told of"


@pytest.mark.parametrize("reader", ["stays", "left"])
def test_a_server_goes_on_when_nobody_reads_what_it_says(tmp_path, monkeypatch, nobody, reader):
    """A script may read the line with the address and no more."""
    monkeypatch.setitem(RUNS, "serve", SERVER)
    status, shown, announced = run(tmp_path, "serve", **({"stdout": nobody} if reader == "left" else {}))
    assert (status, announced) == (0, "")
    assert shown.splitlines()[::3] == ([] if reader == "left" else ["compiling a program", "ready"])


@pytest.mark.parametrize("name", ["generate", "documents", "launch", "train"])
def test_a_reader_of_stderr_that_has_left_ends_the_command_quietly(tmp_path, nobody, name, monkeypatch):
    """Commands that write there while they run: steps, a closing report."""
    if name == "generate":
        monkeypatch.setitem(RUNS, name, (GENERATE, ["--max-new-tokens", "1", "--stats", "s"]))
    if name == "documents":
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("x")
        monkeypatch.setitem(RUNS, name, WORKER)
    if name == "launch":
        monkeypatch.setitem(RUNS, name, LAUNCH)
    status, shown, _ = run(tmp_path, name, stderr=nobody)
    assert status == SIGPIPE
    assert "Traceback" not in shown
    if name == "generate":
        assert json.loads((tmp_path / "s").read_text())["finish_reason"] == "length"


def test_both_readers_have_left_and_the_error_has_nowhere_to_go(tmp_path, nobody, monkeypatch):
    assert run(tmp_path, "generate", stdout=nobody, stderr=nobody)[0] == SIGPIPE
    assert json.loads((tmp_path / "s").read_text())["finish_reason"] == "interrupted"
    monkeypatch.setitem(RUNS, "commands", (CONVERT, ["sing"]))
    assert run(tmp_path, "commands", stderr=nobody)[0] == SIGPIPE


def test_a_broken_pipe_of_something_else_is_an_error(tmp_path, monkeypatch):
    broken = GENERATE.replace("b: loaded", "b: (_ for _ in ()).throw(BrokenPipeError(32, 'x'))")
    monkeypatch.setitem(RUNS, "generate", (broken, []))
    assert run(tmp_path, "generate") == (1, "", "error: [Errno 32] x\n")


@pytest.mark.parametrize(
    ("name", "closed"),
    [("generate", (0, 1, 2)), ("generate", (2,)), ("train", (0, 1, 2)), ("evaluate", (1,)), ("convert", (1, 2))],
)
def test_closed_streams_take_nothing_and_no_file_takes_their_place(tmp_path, monkeypatch, name, closed):
    if name == "generate":
        monkeypatch.setitem(RUNS, name, (GENERATE, ["--max-new-tokens", "1", "--stats", "s", "--journal", "j"]))
    status, shown, announced = run(tmp_path, name, closed=closed)
    assert status == 0, announced
    assert "Traceback" not in announced
    if 2 in closed:
        assert "tokens/s" not in shown, "what was for stderr is not on stdout"
    if name == "generate":
        header, *records = (tmp_path / "j").read_text().splitlines()
        assert len(records) == 1
        assert json.loads(header)["format"] == "tokenswift_jax journal"
        assert json.loads(records[0])["token_ids"] == [300]
        assert (tmp_path / "s").read_text().count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize(
    ("name", "unbuffered"),
    [("convert", False), ("help", False), ("help", True), ("commands", True), ("evaluate", True)],
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, name, unbuffered):
    written = EVALUATE.replace("* 3})", "* 3, 'to_json': lambda self: {}})")
    monkeypatch.setitem(RUNS, "evaluate", (written, ["--data", "x", "--json", "s"]))
    with open("/dev/full", "w") as full:
        status, _, announced = run(tmp_path, name, unbuffered=unbuffered, stdout=full)
    assert (status, announced) == (1, "error: cannot write standard output: No space left on device\n")
    assert name != "evaluate" or json.loads((tmp_path / "s").read_text()) == {}, "the file does not depend on stdout"
