"""`python -m convert.hf SRC DST` converts an HF or published TokenSwift checkpoint to this project's layout."""

from __future__ import annotations

from collections.abc import Sequence

from convert.command import run
from tokenswift_jax.cli.command import Parser, leave
from tokenswift_jax.cli.converters import path

PROGRAM = "python -m convert.hf"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command; returns its exit status (0, 1 a system error, 2 bad input, 130 interrupted, 141 no reader)."""
    parser = _parser(program)
    return run(lambda words: convert(words, parser), argv, parser)


def convert(arguments: list[str], parser: Parser | None = None) -> str:
    """Converts as the command line says and returns a summary.

    Raises:
      UserError: a bad argument, source or destination; nothing is written then.
    """
    options = (parser or _parser(PROGRAM)).parse_args(arguments)
    from convert.layout import new_directory, write_layout
    from tokenswift_jax.checkpoint import open_checkpoint
    from tokenswift_jax.checkpoint.load import parse_dtype

    with new_directory(options.destination) as folder:
        dtype = None if options.dtype is None else parse_dtype(options.dtype)
        summary = write_layout(open_checkpoint(options.source), folder, dtype)
    return f"wrote {options.destination}: {summary}"


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="A checkpoint of transformers, or a published TokenSwift one, to this project's layout.",
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint directory or hub id (owner/name)")
    parser.add_argument("destination", metavar="DST", type=path, help="new or empty directory")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights")
    return parser


if __name__ == "__main__":
    leave(main())
