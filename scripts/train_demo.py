"""Makes the bundled demo model from a folder of books: text, tokenizer, training in phases, the checkpoint to ship.

    python scripts/train_demo.py --data ../shared/corpus/train --work runs/demo --output runs/demo/model

The phases are those of configs/demo.json, each one run of `python -m tokenswift_jax.train` from the checkpoint of the
one before; --work contains their checkpoints. Killed and called again, the script continues. It does not repeat a
finished phase, so phases trained elsewhere may be copied or linked there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from demo.assemble import assemble
from demo.recipe import Recipe, read_recipe
from demo.text import read_books, write_books

from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import read_config, read_json
from tokenswift_jax.checkpoint.new_directory import new_directory
from tokenswift_jax.cli.command import exit_status
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.cli import main as train_command
from tokenswift_jax.training.export import TRAINING_FILE
from tokenswift_jax.training.fresh import write_fresh
from tokenswift_jax.training.settings import TrainingSettings, differing

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Runs the remaining phases; the exit status (that of the training command, 2 for bad input)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt books, UTF-8")
    parser.add_argument("--held-out", type=Path, help="folder of books that training is examined on")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.json")
    parser.add_argument("--work", type=Path, required=True, help="folder of the text and the phases' checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--start", type=Path, help="begin with this checkpoint's weights and tokenizer")
    return exit_status(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    recipe = read_recipe(arguments.config)
    work, start = arguments.work, arguments.work / "start"
    work.mkdir(parents=True, exist_ok=True)
    finished = {name: _is_finished(work / name, settings) for name, settings in recipe.phases.items()}
    text, held_out = work / "text", work / "held_out" if arguments.held_out else None
    if not all(finished.values()) or not (start.exists() or arguments.start):
        write_books(arguments.data, text, recipe.text["wrap_column"], recipe.text["wrapped_every"])
        if held_out is not None:
            write_books(arguments.held_out, held_out, recipe.text["wrap_column"], None)
    make_start(start, recipe, arguments.start, text)
    before = start
    for name, settings in recipe.phases.items():
        if not finished[name]:
            print(f"phase {name}, from {before}", file=sys.stderr)
            status = _train(work, name, settings, before, text, held_out)
            if status:
                return status
        before = work / name
    assemble(arguments.output, recipe, start, work)
    print(arguments.output)
    return 0


def make_start(folder: Path, recipe: Recipe, given: Path | None, text: Path) -> None:
    """Makes the checkpoint that the first phase starts from: a link to a given one, else random weights and a tokenizer
    trained on the books of `text`. One made by an earlier call stays.

    Raises:
      UserError: it was made from another checkpoint or for another model; the books are too short.
    """
    own = folder if folder.exists() or given is None else checkpoint.resolve(given)
    if own.exists():
        found, wanted = read_config(own), recipe.hf_config
        differ = [f"{name} ({found.get(name)!r})" for name, value in wanted.items() if found.get(name) != value]
        if differ:
            raise UserError(f"{own} holds another model than the configuration's: {', '.join(differ)}")
    if given is not None and checkpoint.fingerprint(checkpoint.resolve(given)) != checkpoint.fingerprint(own):
        raise UserError(f"the run in {folder.parent} started from another checkpoint than {given}; give another --work")
    if own is not folder:
        folder.symlink_to(own.resolve(), target_is_directory=True)
    elif not folder.exists():
        with new_directory(folder) as draft:
            write_fresh(draft, recipe.hf_config, read_books(text).values())


def _is_finished(folder: Path, settings: TrainingSettings) -> bool:
    """Whether a phase's folder has a checkpoint; UserError if it was trained with other settings."""
    if not (folder / TRAINING_FILE).exists():
        return False
    changed = differing(read_json(folder / TRAINING_FILE)["settings"], settings.to_json())
    if changed:
        raise UserError(f"{folder} was trained otherwise: {'; '.join(changed)}; give another --work")
    return True


def _train(work: Path, name: str, settings: TrainingSettings, start: Path, data: Path, held_out: Path | None) -> int:
    """Trains from the checkpoint `start` into `work`/`name`, or continues a killed run; the exit status."""
    config = work / f"{name}.json"
    config.write_text(json.dumps(settings.to_json(), indent=2) + "\n", encoding="utf-8")
    words: list[str | Path] = ["--model", start, "--output", work / name, "--data", data, "--config", config]
    words += ["--data-cache", work / "cache", "--resume"]
    words += [] if held_out is None else ["--eval-data", held_out]
    return train_command([str(word) for word in words])


if __name__ == "__main__":
    sys.exit(main())
