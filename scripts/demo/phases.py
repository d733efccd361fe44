"""The phases of a run, each one run of the training command that a kill interrupts and a second call continues."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from demo.recipe import Phase
from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.cli import main as train_command
from tokenswift_jax.training.export import TRAINING_FILE
from tokenswift_jax.training.settings import TrainingSettings, differing


def is_finished(work: Path, phase: Phase) -> bool:
    """Whether the phase's checkpoint stands in `work`.

    Raises:
      UserError: it does, but was trained with other settings.
    """
    told = work / phase.name / TRAINING_FILE
    if not told.exists():
        return False
    # a setting that the run's own version did not know had its default's meaning
    before = asdict(TrainingSettings()) | read_json(told)["settings"]
    changed = differing(before | {"betas": list(before["betas"])}, phase.settings.to_json())
    if changed:
        raise UserError(f"{told.parent} was trained otherwise: {'; '.join(changed)}; give another --work")
    return True


def run_phase(work: Path, phase: Phase, start: Path, data: Path, held_out: Path | None) -> int:
    """Trains from the checkpoint `start` into `work`/name, going on where a killed run stopped; the exit status."""
    config = work / f"{phase.name}.json"
    config.write_text(json.dumps(phase.settings.to_json(), indent=2) + "\n", encoding="utf-8")
    words: list[str | Path] = ["--model", start, "--output", work / phase.name, "--data", data, "--config", config]
    words += ["--data-cache", work / "cache", "--resume"]
    if held_out is not None:
        words += ["--eval-data", held_out]
    return train_command([str(word) for word in words])
