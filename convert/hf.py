"""`python -m convert.hf SRC DST` converts an HF, GGUF or published TokenSwift checkpoint to this project's layout.

With `--orbax` the weights become an orbax checkpoint. SRC may have one too, so that a second conversion leads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from convert.command import progress, run
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
    from convert.layout import summary_of, write_layout
    from tokenswift_jax.checkpoint import open_checkpoint
    from tokenswift_jax.checkpoint.directory import gguf_file, resolve
    from tokenswift_jax.checkpoint.gguf.conversion import convert_gguf
    from tokenswift_jax.checkpoint.load import parse_dtype
    from tokenswift_jax.checkpoint.new_directory import new_directory

    with progress(options.quiet) as report, new_directory(options.destination) as folder:
        dtype = None if options.dtype is None else parse_dtype(options.dtype)
        file = gguf_file(options.source)
        if file is None:
            checkpoint = open_checkpoint(resolve(options.source, report, heads=False))
            summary = write_layout(checkpoint, folder, dtype, orbax=options.orbax, report=report)
        elif options.orbax:
            # Without this folder, `resolve` keeps the conversion to float32 in the cache folder (cost: its disk space).
            with TemporaryDirectory(dir=folder) as plain:
                convert_gguf(file, Path(plain), dtype, report)
                summary = write_layout(open_checkpoint(plain), folder, None, orbax=True, report=report)
        else:
            summary = summary_of(convert_gguf(file, folder, dtype, report), heads=0)
    return f"wrote {options.destination}: {summary}"


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="A checkpoint of transformers, a published TokenSwift one, or GGUF, to this project's layout.",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="checkpoint directory (safetensors or orbax), GGUF file, smollm2, or hub id (owner/name)",
    )
    parser.add_argument("destination", metavar="DST", type=path, help="new or empty directory")
    parser.add_argument("--orbax", action="store_true", help="write the weights as an orbax checkpoint (DST/orbax)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


if __name__ == "__main__":
    leave(main())
