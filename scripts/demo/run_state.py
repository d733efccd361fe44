"""What a run must remember to continue where it stopped: learner, step, seconds, tokens."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from demo.learner import Learner


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
      step: optimizer steps taken.
      seconds: training time so far, over all sessions.
      tokens: tokens read by phase name.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)


def save_state(folder: Path, learner: Learner, progress: Progress) -> None:
    """Writes FOLDER/state.safetensors in one move, so a kill leaves the old state or the new one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(learner)
    tensors = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    folder.mkdir(parents=True, exist_ok=True)  # an hour's run must not die of a swept folder
    draft = folder / "state.safetensors.part"
    save_file(tensors, draft, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(draft, folder / "state.safetensors")


def load_state(folder: Path, like: Learner) -> tuple[Learner, Progress]:
    """The saved learner in the structure of `like`, and the counters."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    with safe_open(folder / "state.safetensors", framework="numpy") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        restored = [jax.numpy.asarray(file.get_tensor(jax.tree_util.keystr(path))) for path, _ in leaves]
    return jax.tree_util.tree_unflatten(structure, restored), progress
