"""From the last phase's checkpoint to the directory that is shipped."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax

from demo.extent import Extent, extent
from demo.recipe import Phase, Recipe
from tokenswift_jax import __version__, checkpoint
from tokenswift_jax.checkpoint.directory import GENERATION_FILE, companion_files, read_json
from tokenswift_jax.checkpoint.tensors import Tensor
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.export import TRAINING_FILE

_ENDS = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}


def assemble(output: Path, recipe: Recipe, start: Path, phases: Sequence[Path]) -> None:
    """Writes `output`: the last phase's backbone and heads in bfloat16, tokenizer, configurations, training.json.

    Args:
      output: its other files (a model card) stay.
      recipe: what was run.
      start: the checkpoint of the beginning.
      phases: the phases' checkpoint directories.

    Raises:
      UserError: a phase's checkpoint cannot be read, or the last one has no heads.
    """
    last = checkpoint.open_checkpoint(phases[-1])
    if not last.config.num_draft_heads:
        raise UserError(f"{phases[-1]} has no draft heads")
    tensors = [tensor.astype(np.dtype(ml_dtypes.bfloat16)) for tensor in last.tensors.values()]
    config = {**last.hf_config, "torch_dtype": "bfloat16"}
    config["tokenswift"] = {
        "num_heads": last.config.num_draft_heads,
        "head_type": last.config.draft_head_type,
        "node_set": (last.hf_config.get("tokenswift") or {}).get("node_set"),
        "base": None,
    }
    draft = output.with_name(f"{output.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    checkpoint.save(draft, config, tensors)
    for file in companion_files(phases[-1]):
        shutil.copyfile(file, draft / file.name)
    _write_json(draft / GENERATION_FILE, recipe.generation | _ENDS)
    _write_json(draft / TRAINING_FILE, _facts(recipe, start, phases, tensors))
    output.mkdir(exist_ok=True)
    for file in draft.iterdir():
        os.replace(file, output / file.name)
    draft.rmdir()


def _facts(recipe: Recipe, start: Path, phases: Sequence[Path], tensors: Sequence[Tensor]) -> dict[str, Any]:
    told = [_phase_facts(phase, folder) for phase, folder in zip(recipe.phases, phases, strict=True)]
    started = _started_from(start)
    whole = sum((_extent(facts) for facts in told), Extent(**started["in_all"]) if started else Extent())
    return {
        "started_from": started,
        "phases": told,
        "in_all": asdict(whole) | {"minutes": whole.minutes and round(whole.minutes, 1)},
        "text": asdict(recipe.text),
        "parameters": sum(int(np.prod(tensor.shape)) for tensor in tensors),
        "machine": f"{platform.machine()}, {', '.join(dict.fromkeys(facts['device'] for facts in told))}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "tokenswift_jax": __version__,
        },
    }


def _started_from(start: Path) -> dict[str, Any] | None:
    """The checkpoint of the beginning and its own training, None for weights that knew nothing."""
    told = start / TRAINING_FILE
    if not told.exists():
        return None
    return {"fingerprint": checkpoint.fingerprint(start), "in_all": asdict(extent(read_json(told)))}


def _phase_facts(phase: Phase, folder: Path) -> dict[str, Any]:
    told = read_json(folder / TRAINING_FILE)
    tokens, speed = told["steps"] * phase.settings.tokens_per_step, told["tokens_per_second"]
    return {
        "name": phase.name,
        "steps": told["steps"],
        "tokens": tokens,
        "minutes": round(tokens / speed / 60, 1) if speed else None,
        "device": told["device"],
        "settings": told["settings"],
    }


def _extent(facts: Mapping[str, Any]) -> Extent:
    tokens, length = facts["tokens"], facts["settings"]["max_length"]
    if facts["settings"]["what"] == "all":
        return Extent(tokens, 0, facts["minutes"], length, length)
    return Extent(0, tokens, facts["minutes"])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
