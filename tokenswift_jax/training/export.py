"""The export of trained parameters to the checkpoint directory that `generate` loads."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from tokenswift_jax.checkpoint.directory import copy_companions, lasting_base, read_config
from tokenswift_jax.checkpoint.load import open_checkpoint
from tokenswift_jax.checkpoint.save import save, state_tensors
from tokenswift_jax.paths import write_text
from tokenswift_jax.training.learner import Learner
from tokenswift_jax.training.settings import TrainingSettings

if TYPE_CHECKING:
    from tokenswift_jax.training.trainer import Paths

TRAINING_FILE = "training.json"


def write_checkpoint(
    paths: Paths,
    learner: Learner,
    params: dict[str, Any],
    settings: TrainingSettings,
    found: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Writes the heads (and the backbone, if trained) in the target's dtype, with its configuration and tokenizer, and
    with what the last evaluation found (`Evaluation.found`).

    With a frozen backbone, "base" names the target, by its hub id if it has one, and the directory contains no weights
    of the target.
    """
    dtype = open_checkpoint(paths.model).dtype
    tensors = state_tensors(params["heads"])
    base: str | None = lasting_base(paths.model, paths.hub_id)
    if settings.what == "all":
        tensors += state_tensors(params["backbone"])
        base = None
    config = {name: value for name, value in read_config(paths.model).items() if name != "medusa_heads"}
    drafted = learner.config.draft_vocab
    config["tokenswift"] = {
        "num_heads": settings.heads,
        "head_type": settings.head_type,
        "node_set": found.get("node_set"),
        "expected_tokens": found.get("expected_tokens"),
        "draft_vocab": None if drafted is None else drafted.ids.tolist(),
        "base": base,
    }
    output = paths.output
    output.mkdir(parents=True, exist_ok=True)
    save(output, config, [tensor.astype(dtype) for tensor in tensors])
    copy_companions(paths.model, output)
    draft = output / f"{TRAINING_FILE}.part"
    write_text(draft, json.dumps(facts, indent=2) + "\n")
    os.replace(draft, output / TRAINING_FILE)
