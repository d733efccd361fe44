"""The checkpoint that the first phase starts from: a copy of a given one, or a new tokenizer and random weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from demo.recipe import Recipe
from demo.text import read_books
from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import base_directory, read_config
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.fresh import write_fresh


def make_start(folder: Path, recipe: Recipe, given: Path | None, text: Path) -> None:
    """Fills `folder` in one move: from `given`, else random weights and a tokenizer trained on the books of `text`.

    A folder made by an earlier call stays as it is.

    Raises:
      UserError: it was made from another checkpoint or for another model; the books are too short.
    """
    if folder.exists():
        if given is not None and checkpoint.fingerprint(checkpoint.resolve(given)) != checkpoint.fingerprint(folder):
            raise UserError(
                f"the run in {folder.parent} started from another checkpoint than {given}; give another --work"
            )
        _check_model(folder, recipe)
        return
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if given is None:
        write_fresh(draft, recipe.hf_config, read_books(text).values())
    else:
        _copy(checkpoint.resolve(given), draft, recipe)
    os.replace(draft, folder)


def _check_model(folder: Path, recipe: Recipe) -> None:
    found, wanted = read_config(folder), recipe.hf_config
    differ = [f"{name} ({found.get(name)!r})" for name, value in wanted.items() if found.get(name) != value]
    if differ:
        raise UserError(f"{folder} holds another model than the configuration's: {', '.join(differ)}")


def _copy(given: Path, folder: Path, recipe: Recipe) -> None:
    if base_directory(given) != given:
        raise UserError(f"{given} has its weights in another directory; start from a checkpoint with its own weights")
    _check_model(given, recipe)
    for file in given.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)
