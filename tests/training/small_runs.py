"""A tiny checkpoint with a tokenizer, a little text, and training runs of a few steps on them."""

import io
import random
from pathlib import Path

import numpy as np
from checkpoint.checkpoints_made_here import add_tokenizer, copy

from tokenswift_jax.progress_report import silent
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.trainer import Paths, train

FAMILY = "llama3_1"
SMALL = {"max_length": 24, "batch_size": 2, "max_steps": 6, "epochs": None, "warmup_steps": 2, "save_steps": 2}
SMALL |= {"heads": 2, "loss_chunk": 8, "learning_rate": 2e-3, "distill_weight": 0.5}
SMALL |= {"evaluate_prompts": 2, "evaluate_tokens": 12}


def checkpoint_in(folder: Path, family: str = FAMILY) -> Path:
    """A family's tiny checkpoint with a word tokenizer."""
    import json

    copy(family, folder)
    entries = json.loads((folder / "config.json").read_text())["vocab_size"]
    add_tokenizer(folder, min(entries, 64))
    return folder


def text_in(folder: Path, documents: int = 24, words: int = 60) -> Path:
    """Documents of words that follow each other in a fixed order most of the time."""
    folder.mkdir()
    for number in range(documents):
        draw = random.Random(number)
        word, out = draw.randrange(2, 60), []
        for _ in range(words):
            out.append(f"w{word}")
            word = 2 + (word * 3 + 1) % 58 if draw.random() < 0.8 else draw.randrange(2, 60)
        (folder / f"{number:03}.txt").write_text(" ".join(out))
    return folder


def paths_in(folder: Path, output: str = "out") -> Paths:
    """Model, data and output below `folder`; what is there already is used again."""
    model, data = folder / "model", folder / "data"
    if not model.exists():
        checkpoint_in(model)
        text_in(data)
    return Paths(model=model, data=(str(data),), held_out=(), output=folder / output, cache=folder / "cache")


def run(paths: Paths, *, resume: bool = False, mesh=None, report=silent, **settings) -> str:
    """Trains; returns what it said."""
    say, chosen = io.StringIO(), TrainingSettings(**(SMALL | settings))
    train(paths, chosen, resume=resume, strict=False, say=say, mesh=mesh, report=report)
    return say.getvalue()


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The checkpoint's own tensors."""
    from safetensors.numpy import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
