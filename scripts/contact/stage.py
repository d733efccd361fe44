"""One stage of a plan, in a process of its own: rows into a file as they come, a line for a person here and there."""

from __future__ import annotations

import ctypes
import importlib
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from benchmarking.environment import describe_environment, load_average
from hardware import profiles, shapes
from hardware.filled import filled_variants, random_model
from hardware.sections import SECTIONS, Check

from contact.lines import line_of, lines_of_section
from contact.memory import LONGEST, needed_bytes, where_it_fits
from contact.plans import settings_of, stage_named
from contact.rows import read_rows

Rows = Iterator[dict[str, Any]]
# With the graphs that a timed run has; the profiler alone has XLA launch kernel by kernel.
_PROFILED_GRAPHS = {"xla_enable_command_buffers_during_profiling": True}


def run_stage(plan: str, name: str, rows_file: Path, work: Path) -> int:
    """Runs the sections of a stage, one after the other even where one fails; 1 if one failed or found something wrong.

    Args:
      plan: its name.
      name: of the stage.
      rows_file: where rows go, one JSON object a line.
      work: of both plans; rows of other stages lie there.
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

        keep("environment", environment)
        print(line_of("environment", environment), flush=True)
        for section in stage.sections:
            made = []
            for row in _until_it_fails(section, check):
                keep(section, row)
                made.append(row)
                good &= "error" not in row and row.get("good") is not False and not row.get("audit_failed")
                said = line_of(section, row)
                if said:
                    print(f"  {said}", flush=True)
            for said in lines_of_section(section, made):
                print(f"  {said}", flush=True)
    return 0 if good else 1


def rows_of_all(work: Path) -> list[dict[str, Any]]:
    """Rows of all stages of both plans, the latest file first."""
    files = sorted(work.glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [row for file in files for row in read_rows(file)]


def _until_it_fails(section: str, check: Check) -> Rows:
    limit = _memory_limit()
    needed = needed_bytes(section, check.model, check.capacity, check.dtype)
    if limit is not None and needed > limit:
        where = where_it_fits(needed)
        yield {"missing": f"{check.model} needs {needed / 1e9:.0f} GB, {limit / 1e9:.0f} GB are here; it fits {where}"}
        return
    try:
        yield from {**SECTIONS, **OWN}[section](check)
    except Exception as error:
        traceback.print_exc()
        yield {"error": f"{type(error).__name__}: {error}"[:2000]}


def machine(check: Check) -> Rows:
    """The driver and libraries, and which models' shapes the device's memory holds."""
    limit = _memory_limit()
    yield {"driver": _driver(), "memory_limit": limit}
    try:  # what it imports may be missing too
        yield {"library": "tokamax", "version": importlib.import_module("tokamax").__version__}
    except Exception as error:
        yield {"library": "tokamax", "missing": f"prefill runs tree_attention, tokamax does not import ({error})"}
    for name in shapes.NAMES:
        needed = needed_bytes("steps", name, LONGEST, jnp.dtype(jnp.bfloat16))
        fits = {} if limit is None else {"fits_here": needed <= limit}
        yield {"shapes": name, "needed_bytes": needed, "fits": where_it_fits(needed), **fits}


def profile_graphs(check: Check) -> Rows:
    """The profile of a step that runs as graphs: its gaps are those of a timed run."""
    model = random_model(shapes.config_of(check.model), check.dtype)
    name, length = check.steps[0], check.lengths[0]
    options = _PROFILED_GRAPHS if jax.default_backend() == "gpu" else {}
    for _, step in filled_variants(model, name, length, check.capacity, {"graphs": options}):
        yield from profiles.slowest(step, name, length)


OWN: dict[str, Callable[[Check], Rows]] = {"machine": machine, "profile_graphs": profile_graphs}


def _memory_limit() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("bytes_limit")


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _end_with_parent() -> None:
    """Asks Linux to end this process with the one that began it: left alone, it would hold the device's memory and
    disturb the next run's times."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
