"""The program `tokenswift` and its subcommands: one table, answers at once, one line for what does not exist."""

import inspect
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tokenswift_jax.cli import commands
from tokenswift_jax.cli.commands import COMMANDS, Command, dispatch, main
from tokenswift_jax.cli.convert import CONVERTERS

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "numpy", "flax", "transformers", "rich", "optax", "orbax", "safetensors"}


def python(*words):
    """Runs `python -m WORDS`; the last line of stdout names the heavy packages that were imported."""
    module, *rest = words
    program = (
        f"import atexit, runpy, sys; sys.argv = {['', *rest]!r};"
        f"atexit.register(lambda: print(sorted({HEAVY!r} & set(sys.modules))));"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


HELP = [
    (["tokenswift_jax"], "commands:"),
    (["tokenswift_jax", "generate"], "--show-acceptance"),
    (["tokenswift_jax", "launch"], "--processes"),
    (["tokenswift_jax", "train"], "--head-type"),
    (["tokenswift_jax", "evaluate"], "--store"),
    (["tokenswift_jax", "convert"], "export"),
    (["tokenswift_jax", "convert", "hf"], "--dtype"),
    (["tokenswift_jax", "convert", "export"], "--heads"),
    (["tokenswift_jax.generate"], "--show-acceptance"),
    (["tokenswift_jax.train"], "--head-type"),
    (["tokenswift_jax.evaluate"], "--store"),
    (["convert.hf"], "--dtype"),
    (["convert.export"], "--heads"),
]


@pytest.mark.parametrize(("words", "named"), HELP, ids=[" ".join(words) for words, _ in HELP])
def test_help_answers_without_importing_anything_heavy(words, named):
    done = python(*words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert named in done.stdout
    assert done.stdout.startswith(f"usage: python -m {' '.join(words)} ")
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_the_package_s():
    done = python("tokenswift_jax", "--version")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tokenswift_jax {version}\n[]\n", "")


def test_the_installed_program_is_the_table_s(monkeypatch, capsys):
    (entry,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    name, (module, function) = entry[0], entry[1].split(":")
    assert name == commands.PROGRAM == "tokenswift"
    monkeypatch.setattr(sys, "argv", ["tokenswift", "--help"])
    with pytest.raises(SystemExit) as left:
        getattr(import_module(module), function)()
    assert not left.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("usage: tokenswift COMMAND")
    assert all(f"  {name} " in shown and command.summary in shown for name, command in COMMANDS.items())


@pytest.mark.parametrize("command", [*COMMANDS.values(), *CONVERTERS.values()], ids=lambda command: command.module)
def test_every_entry_of_the_tables_is_a_command(command):
    assert list(inspect.signature(import_module(command.module).main).parameters) == ["argv", "program"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing; known: generate, launch, train, evaluate, serve, convert"),
        (["sing"], "unknown command 'sing' of tokenswift; known commands: generate, launch, train, evaluate"),
        (["--quiet"], "unknown flag '--quiet' of tokenswift; known commands: generate, launch, train, evaluate, serve"),
        (["convert"], "a command is missing; known: hf, export"),
        (["convert", "gguf"], "unknown command 'gguf' of tokenswift convert; known commands: hf, export"),
        (["generate", "--sing"], "unrecognized arguments: --sing; tokenswift generate --help lists the flags"),
        (["train", "--sing"], "the following arguments are required: --data, --output; tokenswift train --help lists"),
        (["evaluate"], "the following arguments are required: --data; tokenswift evaluate --help lists the flags"),
        (["convert", "hf", "x"], "arguments are required: DST; tokenswift convert hf --help lists the flags"),
    ],
)
def test_what_does_not_exist_is_one_line(words, message, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1


def test_a_command_gets_the_words_after_its_name_and_its_status_comes_back(monkeypatch):
    asked = []

    class Module:
        @staticmethod
        def main(argv, program):
            asked.append((argv, program))
            return 7

    monkeypatch.setitem(sys.modules, "made_up", Module)
    table = {"sing": Command("made_up", "a song")}
    assert dispatch(table, ["sing", "--loud", "--version"], "choir", "Songs.") == 7
    assert asked == [(["--loud", "--version"], "choir sing")]
