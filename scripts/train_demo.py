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
from dataclasses import asdict
from pathlib import Path

from demo.assemble import assemble
from demo.recipe import read_recipe
from demo.start import make_start
from demo.text import write_books

from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.cli import main as train_command
from tokenswift_jax.training.export import TRAINING_FILE
from tokenswift_jax.training.settings import TrainingSettings, differing

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt books, UTF-8")
    parser.add_argument("--held-out", type=Path, help="folder of books that training is examined on")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.json")
    parser.add_argument("--work", type=Path, required=True, help="folder of the text and the phases' checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--start", type=Path, help="begin with this checkpoint's weights and tokenizer")
    parser.add_argument("--phases", nargs="+", metavar="NAME", help="run these phases only")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the remaining phases; the exit status (that of the training command, 2 for bad input)."""
    try:
        return _run(parse_arguments(argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    recipe = read_recipe(arguments.config)
    unknown = sorted(set(arguments.phases or ()) - set(recipe.phases))
    if unknown:
        raise UserError(f"unknown phases {', '.join(unknown)}; {arguments.config} has {', '.join(recipe.phases)}")
    work, start = arguments.work, arguments.work / "start"
    work.mkdir(parents=True, exist_ok=True)
    finished = {name: _is_finished(work / name, settings) for name, settings in recipe.phases.items()}
    text, held_out = work / "text", work / "held_out" if arguments.held_out else None
    if not all(finished.values()) or not (start.exists() or arguments.start):
        write_books(arguments.data, text, recipe.text["wrap_column"], recipe.text["wrapped_every"])
        if held_out is not None:
            write_books(arguments.held_out, held_out, recipe.text["wrap_column"], None)
    make_start(start, recipe, arguments.start, text)
    before, ready, left = start, True, []
    for name, settings in recipe.phases.items():
        if not finished[name] and (arguments.phases is None or name in arguments.phases):
            if not ready:
                raise UserError(f"phase {name} starts from {before.name}, which is not finished")
            print(f"phase {name}, from {before}", file=sys.stderr)
            status = _train(work, name, settings, before, text, held_out)
            if status:
                return status
            finished[name] = True
        left += [] if finished[name] else [name]
        before, ready = work / name, finished[name]
    if left:
        print(f"phases left to run: {', '.join(left)}", file=sys.stderr)
        return 0
    assemble(arguments.output, recipe, start, work)
    print(arguments.output)
    return 0


def _is_finished(folder: Path, settings: TrainingSettings) -> bool:
    """Whether a phase's folder has a checkpoint; UserError if it was trained with other settings."""
    if not (folder / TRAINING_FILE).exists():
        return False
    # A setting that the version of that run did not know had the meaning of its default.
    before = asdict(TrainingSettings()) | read_json(folder / TRAINING_FILE)["settings"]
    changed = differing(before | {"betas": list(before["betas"])}, settings.to_json())
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
