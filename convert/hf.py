"""`python -m convert.hf SRC DST`: an HF or published TokenSwift checkpoint to this project's layout."""

from __future__ import annotations

from pathlib import Path

from convert import Parser, new_directory, run, write_layout
from tokenswift_jax.checkpoint import open_checkpoint
from tokenswift_jax.checkpoint.load import parse_dtype


def convert(arguments: list[str]) -> str:
    """Converts as the command line says and returns a summary.

    Raises:
      UserError: a bad argument, source or destination; nothing is written then.
    """
    parser = Parser(prog="python -m convert.hf", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="checkpoint directory or hub id (owner/name)")
    parser.add_argument("destination", metavar="DST", type=Path, help="new or empty directory")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights")
    options = parser.parse_args(arguments)
    with new_directory(options.destination) as folder:
        dtype = None if options.dtype is None else parse_dtype(options.dtype)
        summary = write_layout(open_checkpoint(options.source), folder, dtype)
    return f"wrote {options.destination}: {summary}"


if __name__ == "__main__":
    run(convert)
