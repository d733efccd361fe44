"""`python -m tokenswift_jax.harness`: the command of lm-evaluation-harness, which knows the model `tokenswift`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tokenswift_jax.cli.command import exit_status, leave
from tokenswift_jax.errors import UserError

_PRESETS = {"model": "tokenswift", "batch_size": "auto"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the harness's own command on the words; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _run(words))


def _run(words: list[str]) -> int:
    if find_spec("lm_eval") is None:
        raise UserError("the harness needs lm-eval; install it with: pip install 'tokenswift_jax[harness]'")
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    import_module("tokenswift_jax.harness.model")  # registers the model

    sys.argv = ["lm-eval", *with_presets(words)]
    cli_evaluate()
    return 0


def with_presets(words: list[str]) -> list[str]:
    """The words of a run, with the model and the batch size if nothing names them; other words unchanged."""
    parser = argparse.ArgumentParser(add_help=False)
    for short, flag in (("-t", "--tasks"), ("-M", "--model"), ("-b", "--batch_size"), ("-C", "--config")):
        parser.add_argument(short, flag)
    named = {name for name, value in vars(parser.parse_known_args(words)[0]).items() if value is not None}
    if words[:1] in (["ls"], ["validate"]) or not named & {"tasks", "config"}:
        return words
    if "config" in named:
        import yaml

        path = Path(parser.parse_known_args(words)[0].config)
        named |= set(yaml.safe_load(path.read_text()) or {}) if path.is_file() else set()
    return [*words, *(word for name, value in _PRESETS.items() if name not in named for word in (f"--{name}", value))]


if __name__ == "__main__":
    leave(main())
