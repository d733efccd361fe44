"""Makes the bundled demo model from a folder of books: text, tokenizer, training in phases, the checkpoint to ship.

    python scripts/train_demo.py --data ../shared/corpus/train --work runs/demo --output runs/demo/model

The phases are those of configs/demo.json, each one run of `python -m tokenswift_jax.train` from the checkpoint of the
one before; their checkpoints stand in --work. Killed and called again, it goes on where it was. A finished phase is
not run again, so that phases trained elsewhere may be laid (or linked) there. scripts/evaluate_demo.py measures the
result and writes its model card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.assemble import assemble
from demo.phases import is_finished, run_phase
from demo.recipe import Recipe, read_recipe
from demo.start import make_start
from demo.text import write_books

from tokenswift_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt books, UTF-8")
    parser.add_argument("--held-out", type=Path, help="folder of books that training is examined on")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.json")
    parser.add_argument("--work", type=Path, required=True, help="folder of the text and the phases' checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--start", type=Path, help="begin with this checkpoint's weights and tokenizer, not anew")
    parser.add_argument("--phases", nargs="+", metavar="NAME", help="run these phases only (the others stand or wait)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to do; the exit status (that of the training command, 2 for bad input)."""
    try:
        return _run(parse_arguments(argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    recipe = read_recipe(arguments.config)
    unknown = sorted(set(arguments.phases or ()) - {phase.name for phase in recipe.phases})
    if unknown:
        raise UserError(f"unknown phases {', '.join(unknown)}; {arguments.config} has {_names(recipe)}")
    work, start = arguments.work, arguments.work / "start"
    work.mkdir(parents=True, exist_ok=True)
    finished = [is_finished(work, phase) for phase in recipe.phases]
    text, held_out = work / "text", work / "held_out" if arguments.held_out else None
    if not all(finished) or not (start.exists() or arguments.start):
        write_books(arguments.data, text, recipe.text.wrap_column, recipe.text.wrapped_every)
        if held_out is not None:
            write_books(arguments.held_out, held_out, recipe.text.wrap_column, None)
    make_start(start, recipe, arguments.start, text)
    before, ready, left = start, True, []
    for phase, done in zip(recipe.phases, finished, strict=True):
        if not done and (arguments.phases is None or phase.name in arguments.phases):
            if not ready:
                raise UserError(f"phase {phase.name} starts from {before.name}, which is not finished")
            print(f"phase {phase.name}, from {before}", file=sys.stderr)
            status = run_phase(work, phase, before, text, held_out)
            if status:
                return status
            done = True
        if not done:
            left.append(phase.name)
        before, ready = work / phase.name, done
    if left:
        print(f"phases left to run: {', '.join(left)}", file=sys.stderr)
        return 0
    assemble(arguments.output, recipe, start, [work / phase.name for phase in recipe.phases])
    print(arguments.output)
    return 0


def _names(recipe: Recipe) -> str:
    return ", ".join(phase.name for phase in recipe.phases)


if __name__ == "__main__":
    sys.exit(main())
