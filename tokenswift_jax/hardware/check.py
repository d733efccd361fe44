"""Runs the sections of a device check: rows into a file as they come, a line for a person here and there."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from tokenswift_jax.hardware.environment import load_average
from tokenswift_jax.hardware.lines import line_of, lines_of_section
from tokenswift_jax.hardware.sections import SECTIONS, Check, memory_limit, needed_bytes, where_it_fits


def run_sections(names: Iterable[str], check: Check, environment: dict[str, Any], file: TextIO) -> int:
    """Runs the sections, one after the other even where one fails; 1 if one failed or found an error.

    Args:
      names: of `SECTIONS`.
      check: their settings; each row also goes to the front of `check.earlier`.
      environment: `describe_environment()`, the first row.
      file: each row is a JSON object on a line of its own.
    """
    good, begun = True, time.monotonic()

    def keep(section: str, row: dict[str, Any]) -> None:
        about = {"section": section, "device": environment["device"], "model": check.model, "dtype": str(check.dtype)}
        seconds = round(time.monotonic() - begun, 1)
        full = {**about, **row, "stage_seconds": seconds, "load_average": load_average()}
        file.write(json.dumps(full) + "\n")
        file.flush()
        check.earlier.insert(0, full)
        line = line_of(section, full)
        if line:
            print(f"  {line}", flush=True)

    keep("environment", environment)
    for section in names:
        made = []
        for row in _until_it_fails(section, check):
            keep(section, row)
            made.append(row)
            good &= "error" not in row and row.get("good") is not False and not row.get("audit_failed")
        for line in lines_of_section(section, made):
            print(f"  {line}", flush=True)
    return 0 if good else 1


def _until_it_fails(section: str, check: Check) -> Iterator[dict[str, Any]]:
    """The rows of a section; a row with the error ends those of one that fails or does not fit."""
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
