"""`python -m convert.export DIR OUT`: a checkpoint of this project to a directory that transformers loads.

A "base" is folded in. Draft heads stay in their own file and in the "tokenswift" block of config.json, both of which
transformers passes over; `--heads tokenswift` puts them among the model's tensors, where the reference program looks
for them, and `--heads medusa` writes a directory of heads alone in Medusa's layout.
"""

from __future__ import annotations

from pathlib import Path

from convert import Parser, new_directory, run, write_layout
from convert.medusa import write_medusa
from tokenswift_jax.checkpoint import load_tokenizer, open_checkpoint
from tokenswift_jax.errors import UserError


def export(arguments: list[str]) -> str:
    """Exports as the command line says and returns a summary.

    Raises:
      UserError: a bad argument, source or destination, or a result that transformers cannot read; nothing is
        written then.
    """
    parser = Parser(prog="python -m convert.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", metavar="DIR", type=Path, help="checkpoint directory")
    parser.add_argument("output", metavar="OUT", type=Path, help="new or empty directory")
    parser.add_argument(
        "--heads",
        choices=("tokenswift", "medusa"),
        help="layout of the draft heads: the reference program's, inside the model; or Medusa's, without the model "
        "(default: heads.safetensors beside the model)",
    )
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        raise UserError(f"no such directory: {options.directory}")
    with new_directory(options.output) as folder:
        checkpoint = open_checkpoint(options.directory)
        if options.heads == "medusa":
            summary = write_medusa(checkpoint, folder)
        else:
            summary = write_layout(checkpoint, folder, None, reference_heads=options.heads == "tokenswift")
            _check_readable(folder)
    return f"wrote {options.output}: {summary}"


def _check_readable(folder: Path) -> None:
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # its remarks on foreign fields of config.json are no concern of the export
    try:
        AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises anything on a configuration it dislikes
        raise UserError(f"transformers cannot read this config.json: {' '.join(str(error).split())[:300]}") from None
    load_tokenizer(folder)


if __name__ == "__main__":
    run(export)
