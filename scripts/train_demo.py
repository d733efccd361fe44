"""Trains the bundled demo model: tokenizer, backbone and draft heads, from a folder of books.

    python scripts/train_demo.py --data ../shared/corpus/train --state runs/demo --minutes 80

Time decides the schedule: phases and learning rates follow the part of --minutes that has passed (or of --steps,
where a run must be repeatable). A killed run goes on from --state with --resume. scripts/evaluate_demo.py measures
the result and writes its model card.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from demo.checkpoint import write_checkpoint
from demo.learner import make_step, rates, start
from demo.recipe import Phase, Recipe, read_recipe
from demo.reload import load_parameters
from demo.run_state import Progress, load_state, save_state
from demo.text import keep_wrapped, read_books, unwrap
from demo.tokenizer import save_tokenizer, train_tokenizer
from demo.windows import WindowSampler
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
LOG_SECONDS = 15.0
BUNDLED = ROOT / "tokenswift_jax" / "demo_model"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt books, UTF-8")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.json")
    parser.add_argument("--output", type=Path, default=BUNDLED, help="checkpoint directory")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state and the encoded books")
    parser.add_argument("--resume", action="store_true", help="continue from --state")
    parser.add_argument("--weights", type=Path, help="start from this checkpoint's weights and tokenizer")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time over all sessions, compilation included")
    length.add_argument("--steps", type=int, help="optimizer steps instead of minutes")
    parser.add_argument("--stop-after", type=int, help="leave after this step, state saved (for tests)")
    parser.add_argument("--export-minutes", type=float, default=5.0, help="time between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def encoded_books(arguments: argparse.Namespace, recipe: Recipe) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids (uint16) of the books, unwrapped and as they are; trains the tokenizer where --state has none."""
    store, tokenizer_file = arguments.state / "books.npz", arguments.state / "tokenizer.json"
    if not (arguments.resume and store.exists() and tokenizer_file.exists()):
        raw = read_books(arguments.data)
        plain = [unwrap(text, recipe.text.wrap_column) for text in raw.values()]
        if arguments.weights:
            tokenizer = Tokenizer.from_file(str(arguments.weights / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(plain, recipe.text.vocab_size)
        save_tokenizer(tokenizer, arguments.state, recipe.model.max_position_embeddings)
        encoded = {
            f"{kind}{index:03d}": np.array([0, *ids.ids, 0], np.uint16)  # the end mark on both sides of a book
            for kind, texts in (("plain", plain), ("wrapped", [keep_wrapped(text) for text in raw.values()]))
            for index, ids in enumerate(tokenizer.encode_batch(texts))
        }
        np.savez(store, allow_pickle=False, **encoded)
    save_tokenizer(Tokenizer.from_file(str(tokenizer_file)), arguments.output, recipe.model.max_position_embeddings)
    with np.load(store) as arrays:
        names = sorted(arrays)
        return [arrays[n] for n in names if n[0] == "p"], [arrays[n] for n in names if n[0] == "w"]


def facts(arguments: argparse.Namespace, recipe: Recipe, state: Progress, losses: dict[str, Any]) -> dict[str, Any]:
    """What the model card says about the training."""
    fields = json.loads(arguments.config.read_text())
    before = json.loads((arguments.weights / "training.json").read_text()) if arguments.weights else {}
    return {
        "started_from": {key: before[key] for key in ("steps", "training_minutes", "tokens_seen") if before},
        "steps": state.step,
        "training_minutes": round(state.seconds / 60, 1),
        "tokens_seen": state.tokens,
        "phases": fields["phases"],
        "optimizer": fields["optimizer"],
        "text": fields["text"],
        "parameters": sum(x.size for x in jax.tree.leaves(start(recipe, 0)[1][:2])),
        "losses": losses,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}, {jax.local_device_count()} device",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "optax": optax.__version__},
    }


class Log:
    """Means of the losses since the last line, printed as one JSON line about every LOG_SECONDS."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.since = time.monotonic()
        self.losses: dict[str, Any] = {}  # the last line's

    def add(self, row: np.ndarray, phase: Phase, state: Progress, last: bool) -> None:
        """Takes one step's losses [1 + heads]: the backbone's, then each head's."""
        self.rows.append(row)
        passed = time.monotonic() - self.since
        if passed < LOG_SECONDS and state.step > 1 and not last:
            return
        mean = np.mean(self.rows, axis=0).round(4).tolist()
        self.losses = {"backbone": mean[0], "heads": mean[1:]}
        speed = round(len(self.rows) * phase.batch * phase.length / passed)
        line = {"phase": phase.name, "step": state.step, "minutes": round(state.seconds / 60, 2), **self.losses}
        print(json.dumps(line | {"tokens": sum(state.tokens.values()), "tokens_per_second": speed}), flush=True)
        self.rows, self.since = [], time.monotonic()


def train(arguments: argparse.Namespace, recipe: Recipe, sampler: WindowSampler) -> None:
    """Runs the phases; writes state and checkpoint on the way and at the end."""
    graph, learner = start(recipe, arguments.seed)
    state = Progress()
    if arguments.weights:
        _, heads, backbone = load_parameters(arguments.weights)
        learner = learner._replace(heads=heads, backbone=backbone)
    if arguments.resume:
        learner, state = load_state(arguments.state, learner)
    log, steps = Log(), {}
    clock, exported = time.monotonic() - state.seconds, time.monotonic()

    def passed() -> float:
        return state.step / arguments.steps if arguments.steps else state.seconds / (60 * arguments.minutes)

    progress = passed()
    while progress < 1.0 and state.step != arguments.stop_after:
        phase = recipe.phase_at(progress)
        if phase.name not in steps:
            steps = {phase.name: make_step(graph, recipe, phase)}  # earlier phases do not come back
        tokens, positions = sampler.sample(phase, state.step)
        offset = np.int32(state.step % phase.head_stride)
        learner, loss, head_loss = steps[phase.name](learner, rates(recipe, progress), tokens, positions, offset)
        row = np.array([loss, *head_loss])  # waits for the step, so that the clock is true
        state.step += 1
        state.seconds = time.monotonic() - clock
        state.tokens[phase.name] = state.tokens.get(phase.name, 0) + phase.batch * phase.length
        progress = passed()
        last = progress >= 1.0 or state.step == arguments.stop_after
        log.add(row, phase, state, last)
        if last or time.monotonic() - exported > 60 * arguments.export_minutes:
            save_state(arguments.state, learner, state)
            told = facts(arguments, recipe, state, log.losses)
            write_checkpoint(arguments.output, recipe, learner.backbone, learner.heads, told)
            exported = time.monotonic()


def main(argv: list[str] | None = None) -> None:
    """Reads the books, trains, leaves the checkpoint directory."""
    arguments = parse_arguments(argv)
    recipe = read_recipe(arguments.config)
    for folder in (arguments.state, arguments.output):
        folder.mkdir(parents=True, exist_ok=True)
    plain, wrapped = encoded_books(arguments, recipe)
    span = recipe.model.max_position_embeddings
    train(arguments, recipe, WindowSampler(plain, wrapped, recipe.text.wrapped_share, span, arguments.seed))


if __name__ == "__main__":
    main()
