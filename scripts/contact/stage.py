"""One stage of a plan, in a process of its own: rows into a file as they come, a line for a person here and there."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from contact.plans import settings_of, stage_named
from contact.runner import read_rows
from tokenswift_jax.hardware.check import run_sections
from tokenswift_jax.hardware.environment import describe_environment
from tokenswift_jax.hardware.sections import Check


def run_stage(plan: str, name: str, rows_file: Path, work: Path) -> int:
    """Runs the sections of a stage, one after the other even where one fails; 1 if one failed or found an error.

    Args:
      plan: its name.
      name: of the stage.
      rows_file: rows are appended to it, one JSON object a line.
      work: folder of all plans, with the rows of other stages.
    """
    _end_with_parent()
    stage, environment = stage_named(plan, name), describe_environment()
    settings = settings_of(stage, small=jax.default_backend() == "cpu")
    device = environment["device"]
    earlier = [row for row in rows_of_all(work) if row.get("device") == device]
    check = Check(**settings, earlier=earlier, report=lambda line: print(line, file=sys.stderr, flush=True))
    with rows_file.open("a", encoding="utf-8") as file:
        return run_sections(stage.sections, check, environment, file)


def rows_of_all(work: Path) -> list[dict[str, Any]]:
    """Rows of all stages of all plans, the latest file first."""
    files = sorted(work.glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [row for file in files for row in read_rows(file)]


def _end_with_parent() -> None:
    """Asks Linux to end this process with its parent. Without this, an orphan keeps the device's memory and disturbs
    the next run's times."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
