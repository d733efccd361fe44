"""From the last phase's checkpoint to the directory that is shipped."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optax

from convert.hf import convert
from demo.recipe import Recipe
from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import GENERATION_FILE, read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.environment import describe_environment
from tokenswift_jax.training.export import TRAINING_FILE

_ENDS = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
Row = dict[str, Any]


def assemble(output: Path, recipe: Recipe, start: Path, work: Path) -> None:
    """Writes `output`: the last phase's backbone and heads in bfloat16, tokenizer, configurations, training.json.

    Other files of `output` (a model card) stay. `start` is the first checkpoint, `work` has the phases' directories.

    Raises:
      UserError: a phase's checkpoint cannot be read, or the last one has no heads.
    """
    last = work / list(recipe.phases)[-1]
    if not checkpoint.open_checkpoint(last).config.num_draft_heads:
        raise UserError(f"{last} has no draft heads")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent) as scratch:
        draft = Path(scratch) / "model"
        convert([str(last), str(draft), "--dtype", "bfloat16"])
        parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.open_checkpoint(draft).tensors.values())
        training = _training(recipe, start, work) | {"parameters": parameters}
        for name, content in ((GENERATION_FILE, recipe.generation | _ENDS), (TRAINING_FILE, training)):
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file in draft.iterdir():
            os.replace(file, output / file.name)


def _training(recipe: Recipe, start: Path, work: Path) -> Row:
    """The content of training.json, except the number of parameters."""
    phases = [_phase(recipe, name, read_json(work / name / TRAINING_FILE)) for name in recipe.phases]
    before = read_json(start / TRAINING_FILE)["in_all"] if (start / TRAINING_FILE).exists() else None
    devices = dict.fromkeys(phase["device"] for phase in phases)
    return {
        "started_from": before and {"fingerprint": checkpoint.fingerprint(start), "in_all": before},
        "phases": phases,
        "in_all": _total(phases, before),
        "text": recipe.text,
        "machine": f"{platform.machine()}, {', '.join(devices)}",
        "versions": describe_environment()["versions"] | {"optax": optax.__version__},
    }


def _phase(recipe: Recipe, name: str, training: Mapping[str, Any]) -> Row:
    tokens, speed = training["steps"] * recipe.phases[name].tokens_per_step, training["tokens_per_second"]
    minutes = round(tokens / speed / 60, 1) if speed else None
    kept = {key: training[key] for key in ("device", "settings")}
    return {"name": name, "steps": training["steps"], "tokens": tokens, "minutes": minutes} | kept


def _total(phases: Sequence[Row], before: Row | None) -> Row:
    """Tokens with the backbone learning and with the heads alone, minutes (None if a part's are unknown), and the
    shortest and longest rows while the backbone learnt; of the phases and the training before them."""
    total = before or {"backbone_tokens": 0, "head_tokens": 0, "minutes": 0.0, "shortest": 0, "longest": 0}
    backbone = [phase for phase in phases if phase["settings"]["what"] == "all"]
    lengths = [phase["settings"]["max_length"] for phase in backbone]
    learnt, tokens = (sum(phase["tokens"] for phase in some) for some in (backbone, phases))
    minutes = [total["minutes"], *(phase["minutes"] for phase in phases)]
    return {
        "backbone_tokens": total["backbone_tokens"] + learnt,
        "head_tokens": total["head_tokens"] + tokens - learnt,
        "minutes": None if None in minutes else round(sum(minutes), 1),
        "shortest": min((length for length in (total["shortest"], *lengths) if length), default=0),
        "longest": max(total["longest"], *lengths, 0),
    }
