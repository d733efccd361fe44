"""`tokenswift convert`: the converters of the package `convert`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenswift_jax.cli.commands import Command, dispatch

CONVERTERS = {
    "hf": Command("convert.hf", "a checkpoint of transformers or of the reference program, to this layout"),
    "export": Command("convert.export", "a checkpoint of this layout, to one that transformers loads"),
}


def main(argv: Sequence[str], program: str) -> int:
    """Runs the converter that `argv` names first; returns its exit status."""
    return dispatch(CONVERTERS, argv, program, "Checkpoints from and to other layouts.")
