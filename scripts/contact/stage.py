"""One stage of a plan, in a process of its own: rows into a file as they come, a line for a person here and there."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from contact.lines import line_of, lines_of_section
from contact.plans import settings_of, stage_named
from contact.runner import read_rows
from contact.sections import SECTIONS, Check, Rows, memory_limit, needed_bytes, where_it_fits
from tokenswift_jax.hardware.environment import describe_environment, load_average


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
    good, begun = True, time.monotonic()
    with rows_file.open("a", encoding="utf-8") as file:

        def keep(section: str, row: dict[str, Any]) -> None:
            about = {"section": section, "device": device, "model": check.model, "dtype": str(check.dtype)}
            seconds = round(time.monotonic() - begun, 1)
            full = {**about, **row, "stage_seconds": seconds, "load_average": load_average()}
            file.write(json.dumps(full) + "\n")
            file.flush()
            earlier.insert(0, full)
            line = line_of(section, full)
            if line:
                print(f"  {line}", flush=True)

        keep("environment", environment)
        for section in stage.sections:
            made = []
            for row in _until_it_fails(section, check):
                keep(section, row)
                made.append(row)
                good &= "error" not in row and row.get("good") is not False and not row.get("audit_failed")
            for line in lines_of_section(section, made):
                print(f"  {line}", flush=True)
    return 0 if good else 1


def rows_of_all(work: Path) -> list[dict[str, Any]]:
    """Rows of all stages of all plans, the latest file first."""
    files = sorted(work.glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [row for file in files for row in read_rows(file)]


def _until_it_fails(section: str, check: Check) -> Rows:
    limit = memory_limit()
    needed = needed_bytes(section, check.model, check.capacity, check.dtype)
    if limit is not None and needed > limit:
        where = where_it_fits(needed)
        yield {"missing": f"{check.model} needs {needed / 1e9:.0f} GB, {limit / 1e9:.0f} GB are here; it fits {where}"}
        return
    try:
        yield from SECTIONS[section](check)
    except Exception as error:
        traceback.print_exc()
        yield {"error": f"{type(error).__name__}: {error}"[:2000]}


def _end_with_parent() -> None:
    """Asks Linux to end this process with its parent. Without this, an orphan keeps the device's memory and disturbs
    the next run's times."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
