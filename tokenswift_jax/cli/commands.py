"""One program with subcommands: `tokenswift generate`, `python -m tokenswift_jax generate`, ..."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import exit_status, leave
from tokenswift_jax.errors import UserError

PROGRAM = "tokenswift"


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
      module: the module with `main(argv, program)`, which returns the exit status; imported when the command runs.
      summary: one line for a person.
    """

    module: str
    summary: str


COMMANDS = {
    "generate": Command("tokenswift_jax.cli.generate", "write text from a checkpoint"),
    "launch": Command("tokenswift_jax.cli.launch", "several processes of generate on this machine"),
    "train": Command("tokenswift_jax.training.cli", "train draft heads for a checkpoint"),
    "evaluate": Command("tokenswift_jax.evaluate", "measure a checkpoint's draft heads on held-out text"),
    "serve": Command("tokenswift_jax.serve.cli", "serve a checkpoint behind OpenAI's interface"),
    "convert": Command("tokenswift_jax.cli.convert", "checkpoints from and to other layouts"),
}


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the subcommand that `argv` names first; returns its exit status, 2 if there is no such subcommand."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--version"]:
        return exit_status(lambda: _version())
    about = "Very long text from a language model, several times sooner and token for token the same."
    return dispatch(COMMANDS, words, program, about, options={"--version": "print the version"})


def dispatch(
    commands: Mapping[str, Command],
    words: Sequence[str],
    program: str,
    about: str,
    *,
    options: Mapping[str, str] | None = None,
) -> int:
    """Runs one of `commands`, named by the first word, on the words after it.

    Args:
      commands: the commands by name.
      words: the words of the command line after `program`.
      program: the words that a person types before them.
      about: a sentence for `--help`.
      options: the options of the program itself, with their help.
    """
    known = ", ".join(commands)

    def misnamed() -> int:
        if not words:
            raise UserError(f"a command is missing; known: {known}")
        what = "flag" if words[0].startswith("-") else "command"
        raise UserError(f"unknown {what} {words[0]!r} of {program}; known commands: {known}")

    def shown() -> int:
        rows = {name: command.summary for name, command in commands.items()}
        flags = {"-h, --help": "print this"} | dict(options or {})
        width = max(map(len, [*rows, *flags]))
        listed = [[f"  {name:{width}}  {text}" for name, text in part.items()] for part in (rows, flags)]
        usage = f"usage: {program} COMMAND ..."
        streams.show(usage, "", about, "", "commands:", *listed[0], "", "options:", *listed[1])
        streams.show(f"\n{program} COMMAND --help lists the flags of a command.")
        return 0

    if words and words[0] in ("-h", "--help"):
        return exit_status(shown)
    if not words or words[0] not in commands:
        return exit_status(misnamed)
    module = import_module(commands[words[0]].module)
    return module.main(list(words[1:]), f"{program} {words[0]}")


def _version() -> int:
    from tokenswift_jax import __version__

    streams.show(f"tokenswift_jax {__version__}")
    return 0


def console() -> None:
    """Runs the installed program `tokenswift`."""
    leave(main())
