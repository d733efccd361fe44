"""`python -m convert.export DIR OUT` converts a checkpoint of this project to a directory that transformers loads.

The export includes the tensors of a "base". Draft heads stay in their own file and in the "tokenswift" block of
config.json; transformers ignores both. `--heads tokenswift` stores them among the model's tensors, where the reference
program looks for them, and `--heads medusa` writes a directory of heads alone in Medusa's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.command import progress, run
from tokenswift_jax.cli.command import Parser, leave
from tokenswift_jax.cli.converters import path
from tokenswift_jax.errors import UserError

PROGRAM = "python -m convert.export"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command; returns its exit status (0, 1 a system error, 2 bad input, 130 interrupted, 141 no reader)."""
    parser = _parser(program)
    return run(lambda words: export(words, parser), argv, parser)


def export(arguments: list[str], parser: Parser | None = None) -> str:
    """Exports as the command line says and returns a summary.

    Raises:
      UserError: a bad argument, source or destination, or a result that transformers cannot read; nothing is
        written then.
    """
    options = (parser or _parser(PROGRAM)).parse_args(arguments)
    if not options.directory.is_dir():
        raise UserError(f"no such directory: {options.directory}")
    from convert.layout import write_layout
    from convert.medusa import write_medusa
    from tokenswift_jax.checkpoint import open_checkpoint
    from tokenswift_jax.checkpoint.new_directory import new_directory
    from tokenswift_jax.progress_report import phase

    with progress(options.quiet) as report, new_directory(options.output) as folder:
        checkpoint = open_checkpoint(options.directory)
        if options.heads == "medusa":
            summary = write_medusa(checkpoint, folder, report)
        else:
            reference = options.heads == "tokenswift"
            summary = write_layout(checkpoint, folder, None, reference_heads=reference, report=report)
            with phase(report, "reading the export with transformers"):
                _check_readable(folder)
    return f"wrote {options.output}: {summary}"


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="A checkpoint of this project to a directory that transformers loads.",
    )
    parser.add_argument("directory", metavar="DIR", type=path, help="checkpoint directory")
    parser.add_argument("output", metavar="OUT", type=path, help="new or empty directory")
    parser.add_argument(
        "--heads",
        choices=("tokenswift", "medusa"),
        help="layout of the draft heads: the reference program's, inside the model; or Medusa's, without the model "
        "(default: heads.safetensors beside the model)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _check_readable(folder: Path) -> None:
    from transformers import AutoConfig
    from transformers.utils import logging

    from tokenswift_jax.checkpoint import load_tokenizer

    logging.set_verbosity_error()  # its remarks on foreign fields of config.json do not concern the export
    try:
        AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers may raise any exception for a bad configuration
        raise UserError(f"transformers cannot read this config.json: {' '.join(str(error).split())[:300]}") from None
    load_tokenizer(folder)


if __name__ == "__main__":
    leave(main())
