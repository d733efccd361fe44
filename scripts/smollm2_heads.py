"""Trains draft heads for SmolLM2 on texts that it writes itself, and writes them as this package ships them.

    python scripts/smollm2_heads.py --books BOOKS --held-out HELD_OUT --work RUN --output tokenswift_jax/smollm2_heads

The script writes prompts: chat requests made from configs/smollm2_prompts.json, and passages of the books. The training
command does the rest: the model answers or continues the prompts, and the heads learn from these texts. Its settings
are those of configs/smollm2-own-texts.json; words after `--` go to it too (`-- --max-steps 100`). Killed and called
again, the script continues. `python -m tokenswift_jax.evaluate --model RUN/heads --data HELD_OUT` measures the heads.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from demo.text import read_books
from safetensors.numpy import load_file, save_file

from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import base_directory, read_json
from tokenswift_jax.checkpoint.packaged import DECIDING
from tokenswift_jax.cli.command import exit_status
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.cli import main as train_command
from tokenswift_jax.training.export import TRAINING_FILE

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_WORDS = (60, 100, 140)  # of a passage: with its request it fits `self_distill_prompt`


def main(argv: list[str] | None = None) -> int:
    """Runs the recipe; the exit status (that of the training command, 2 for bad input)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="the target, or heads for it that training continues")
    parser.add_argument("--books", type=Path, required=True, help="folder of *.txt, whose passages prompts contain")
    parser.add_argument("--held-out", type=Path, help="folder of *.txt that the evaluation reads")
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--work", type=Path, required=True, help="folder of the prompts and of the trained heads")
    parser.add_argument("--output", type=Path, help="folder of heads in bfloat16, for `--model smollm2`")
    parser.add_argument("words", nargs="*", help="further words for the training command, after --")
    return exit_status(lambda: _run(parser.parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    prompts, heads = options.work / "prompts.jsonl", options.work / "heads"
    options.work.mkdir(parents=True, exist_ok=True)
    if not prompts.exists():  # the training command tokenises a file of another time again
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in write_prompts(options)]
        prompts.write_text("".join(lines), encoding="utf-8")
    words = ["--model", options.model, "--data", prompts, "--config", CONFIGS / "smollm2-own-texts.json"]
    words += ["--data-cache", options.work / "cache", "--output", heads, "--resume"]
    words += [] if options.held_out is None else ["--eval-data", options.held_out]
    status = train_command([*map(str, words), *options.words])
    if status == 0 and options.output is not None:
        ship(heads, options.output)
    return status


def write_prompts(options: argparse.Namespace) -> list[str]:
    """Prompts in random order: five in eight are chat requests, two in eight requests to work on a passage, one in
    eight is a passage to continue.

    Raises:
      UserError: no book, or no tokenizer.
    """
    books = [text.split(" ") for text in read_books(options.books).values()]
    tokenizer: Any = checkpoint.load_tokenizer(checkpoint.resolve(options.model))
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer; name another model")
    draw, parts = random.Random(options.seed), json.loads((CONFIGS / "smollm2_prompts.json").read_text("utf-8"))

    def passage() -> str:
        book, size = draw.choice(books), draw.choice(_WORDS)
        start = draw.randrange(max(len(book) - size, 1))
        return " ".join(book[start : start + size]).strip()

    def request(text: str) -> str:
        if not tokenizer.chat_template:
            return text
        turns = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def prompt(kind: int) -> str:
        if kind < 5:
            pattern, subject = ("requests", "topics") if kind < 4 else ("code", "tasks")
            return request(draw.choice(parts[pattern]).format(draw.choice(parts[subject])))
        return request(f"{draw.choice(parts['passages'])}\n\n{passage()}") if kind < 7 else passage()

    made = [prompt(number % 8) for number in range(options.prompts)]
    draw.shuffle(made)
    return made


def ship(heads: Path, output: Path) -> None:
    """Writes trained heads in bfloat16 to `output`: config.json names the weights that they fit, and training.json
    gets one more run where there are runs already."""
    block = read_json(heads / "config.json")["tokenswift"]
    weights = read_json(base_directory(heads) / "config.json")
    block |= {"base": "smollm2", "trained_for": {field: weights[field] for field in DECIDING}}
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(json.dumps({"tokenswift": block}) + "\n", encoding="utf-8")
    tensors = load_file(heads / "heads.safetensors")
    narrow = {name: np.ascontiguousarray(value.astype(ml_dtypes.bfloat16)) for name, value in tensors.items()}
    save_file(narrow, output / "heads.safetensors")
    (output / "heads.safetensors").chmod(0o644)
    training, own = output / TRAINING_FILE, read_json(heads / TRAINING_FILE)
    runs = json.loads(training.read_text(encoding="utf-8")) if training.exists() else []
    runs = [run for run in runs if run.get("settings") != own["settings"]]  # shipped again, a run stays one
    training.write_text(json.dumps([*runs, own], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
