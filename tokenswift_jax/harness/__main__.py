"""`python -m tokenswift_jax.harness`: the command of lm-evaluation-harness, which knows the model `tokenswift`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from tokenswift_jax.cli.command import exit_status, leave
from tokenswift_jax.errors import UserError

_PRESETS = {"--model": ("-M", "tokenswift"), "--batch_size": ("-b", "auto")}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the harness's own command on the words; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _run(words))


def _run(words: list[str]) -> int:
    if find_spec("lm_eval") is None:
        raise UserError("the harness needs lm-eval; install it with: pip install 'tokenswift_jax[harness]'")
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    import tokenswift_jax.harness.model  # noqa: F401  (registers the model)

    sys.argv = ["lm-eval", *with_presets(words)]
    cli_evaluate()
    return 0


def with_presets(words: list[str]) -> list[str]:
    """The words of a run with the model and the batch size that it does not name; others as they are."""
    if not any(word.startswith("--tasks") or word == "-t" for word in words):
        return words
    for flag, (short, value) in _PRESETS.items():
        if not any(word == short or word.split("=")[0] == flag for word in words):
            words = [*words, flag, value]
    return words


if __name__ == "__main__":
    leave(main())
