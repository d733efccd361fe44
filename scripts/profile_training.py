"""Profiles the training loop: tokens a second, and the share of its time that is not the device's step.

    python scripts/profile_training.py --data FOLDER --steps 30 --max-length 512 --batch-size 4

The loop is the command's own: it reads batches, runs steps, reads losses, writes metrics; checkpoints and evaluations,
which are as rare as a person wants, are not counted. Against it stands the same compiled step called as often on one
batch that is on the device already. Both run in turns, so that a loaded machine slows both; medians are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from tokenswift_jax import checkpoint
from tokenswift_jax.errors import UserError
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.training import trainer
from tokenswift_jax.training.checkpoints import Checkpoints
from tokenswift_jax.training.learner import load_learner
from tokenswift_jax.training.metrics import MetricsWriter
from tokenswift_jax.training.settings import TrainingSettings, read_settings
from tokenswift_jax.training.shards import tokenise
from tokenswift_jax.training.windows import pack


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_MODEL, help="checkpoint directory or hub id; the bundled demo without")
    parser.add_argument("--data", nargs="+", required=True, help="text files, folders, patterns")
    parser.add_argument("--config", type=Path, help="training settings; the flags below override its fields")
    for name, metavar in (("what", "heads|all"), ("head-type", "TYPE")):
        parser.add_argument(f"--{name}", metavar=metavar)
    for name in ("max-length", "batch-size", "gradient-accumulation-steps", "head-stride", "loss-chunk"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--distill-weight", type=float)
    parser.add_argument("--steps", type=int, default=30, help="steps a round, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSONL file that gets the row too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Profiles and prints one JSON row; returns the exit status."""
    arguments = parse_arguments(argv)
    try:
        row = measure(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(row))
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the loop and the bare step took, as a JSON row; seconds a step, each the median of the rounds."""
    if arguments.steps < 2 or arguments.rounds < 1:
        raise UserError("--steps must be at least 2 (the first one is not counted), --rounds at least 1")
    settings = read_settings(arguments.config, _given(arguments))
    with tempfile.TemporaryDirectory() as folder:
        run = _prepared(arguments, settings, Path(folder))
        loops, bare, speeds = [], [], []
        with MetricsWriter(Path(folder) / "metrics.jsonl", Path(folder) / "events") as metrics:
            saved = Checkpoints(Path(folder) / "steps")
            for number in range(arguments.rounds + 1):
                run.steps = (number + 1) * arguments.steps
                run.tokens, run.seconds = 0, 0.0
                trainer._steps(run, saved, metrics, None, io.StringIO())
                saved.finish()  # or the files of the checkpoint are written while the bare step is timed
                loops.append(run.seconds / (arguments.steps - 1))
                speeds.append(run.tokens / run.seconds)
                bare.append(_bare_step(run, arguments.steps))
            saved.close()
    del loops[0], bare[0], speeds[0]  # the first round compiles what is small as it goes
    loop, step = statistics.median(loops), statistics.median(bare)
    return {
        "section": "training loop",
        "date": str(datetime.date.today()),
        "device": jax.devices()[0].device_kind,
        "model": Path(arguments.model).name,
        "settings": settings.to_json(),
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "tokens_per_second": round(statistics.median(speeds), 1),
        "loop_seconds_per_step": round(loop, 5),
        "device_seconds_per_step": round(step, 5),
        "share_not_in_the_device_step": round(1 - step / loop, 4),
        "spread": {"loop": _spread(loops), "device": _spread(bare)},
        "jax": jax.__version__,
    }


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(TrainingSettings)}
    given = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    # Checkpoints fall on a round's last step alone.
    steps = arguments.steps * (arguments.rounds + 1)
    return given | {"max_steps": steps, "epochs": None, "save_steps": steps, "evaluate_steps": None}


def _prepared(arguments: argparse.Namespace, settings: TrainingSettings, folder: Path) -> trainer._Run:
    model = checkpoint.resolve(arguments.model)
    tokenizer = checkpoint.load_tokenizer(model)
    learner = load_learner(model, settings)
    corpus = tokenise(arguments.data, tokenizer, folder, strict=False, vocab_size=learner.config.vocab_size)
    packing = pack(corpus, length=settings.max_length, min_tokens=settings.heads + 2)
    return trainer._Run(learner, settings, packing, {})


def _bare_step(run: trainer._Run, steps: int) -> float:
    """Seconds of one step over a batch that is on the device; the run goes on from where that leaves it."""
    batch = jax.device_put(run.next_batch())
    state, report = run.step(run.state, run.frozen, batch)
    jax.block_until_ready(report)
    begun = time.perf_counter()
    for _ in range(steps - 1):
        state, report = run.step(state, run.frozen, batch)
    jax.block_until_ready(report)
    seconds = (time.perf_counter() - begun) / (steps - 1)
    run.state = dataclasses.replace(state, step=state.step - steps)
    return seconds


def _spread(values: list[float]) -> list[float]:
    return [round(min(values), 5), round(max(values), 5)]


if __name__ == "__main__":
    sys.exit(main())
