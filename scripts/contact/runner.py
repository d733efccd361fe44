"""Runs a plan's stages as processes, in order, each until its time limit; a stage that dies loses no row."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contact.archive import write_archive
from contact.plans import FEWEST_SECONDS, PLANS, Stage

_GRACE = 3.0  # seconds between asking a stage to end and ending it
_LAST_SECONDS = 6.0  # of a plan, for its archive
_LAST_LINES = 8  # of a log, kept with a stage that did not end well
SCRIPT = Path(__file__).resolve().parents[1] / "first_contact.py"


def stage_command(plan: str, name: str, rows: Path, work: Path) -> list[str]:
    """The command of a stage, whose rows go to the file `rows`."""
    return [sys.executable, str(SCRIPT), "--stage", f"{plan}/{name}", "--rows", str(rows), "--work", str(work)]


def run_plan(plan: str, asked: Any, notes: Sequence[str] = (), begun: float | None = None) -> int:
    """Runs a plan's stages; 0 if all are done.

    The runner writes its record after every stage; run again, the plan goes on with the stages that are not done.

    Args:
      plan: of `plans.PLANS`.
      asked: the script's flags: `work`, `output`, `seconds`, `limits`, `archive_megabytes` and `again`.
      notes: about this run, such as missing wheels.
      begun: when the plan's time began (`time.monotonic`); None for now.
    """
    begun = time.monotonic() if begun is None else begun
    folder = asked.work / plan
    for each in (folder, asked.output):
        each.mkdir(parents=True, exist_ok=True)
    record = {
        "plan": plan,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": list(notes),
        "stages": _attempts_before(folder),
    }
    done = set() if asked.again else {each["stage"] for each in record["stages"] if each["status"] == "done"}
    archived = None
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        for stage in PLANS[plan]:
            if stage.name in done:
                print(f"{stage.name}: done before", flush=True)
                continue
            left = asked.seconds - _LAST_SECONDS - (time.monotonic() - begun)
            record["stages"].append(_run_stage(plan, stage, asked, left))
            _write(asked, record, begun)
    except KeyboardInterrupt:
        record["stages"] = _attempts_before(folder)
        print("interrupted; run again, the plan goes on with the rest", flush=True)
    finally:
        _write(asked, record, begun)
        archived = write_archive(asked.work, asked.output / f"{plan}.tar.gz", int(asked.archive_megabytes * 1e6))
        record["archive"] = archived
        _write(asked, record, begun)
    finished = {each["stage"] for each in record["stages"] if each["status"] == "done"}
    unfinished = [stage.name for stage in PLANS[plan] if stage.name not in finished]
    print(f"{plan}: {time.monotonic() - begun:.0f} s; not done: {', '.join(unfinished) or 'nothing'}", flush=True)
    left_out = f", {len(archived['left_out'])} files left out" if archived["left_out"] else ""
    print(f"{asked.output / plan}.json and .tar.gz ({archived['bytes'] / 1e6:.1f} MB{left_out})", flush=True)
    return 1 if unfinished else 0


def _run_stage(plan: str, stage: Stage, asked: Any, left: float) -> dict[str, Any]:
    """Runs a stage within what is left of the plan; its record, rows included."""
    limit = min(asked.limits.get(stage.name, stage.seconds), left)
    if left < FEWEST_SECONDS:
        print(f"{stage.name}: not started, {max(left, 0):.0f} s are left", flush=True)
        return {"stage": stage.name, "status": f"not started: {max(left, 0):.0f} s were left", "rows": []}
    folder = asked.work / plan
    attempt = 1 + len(list(folder.glob(f"{stage.name}.*.jsonl")))
    stem = folder / f"{stage.name}.{attempt}"
    rows, log = stem.with_name(stem.name + ".jsonl"), stem.with_name(stem.name + ".log")
    rows.touch()
    print(f"{stage.name} (at most {limit:.0f} s)", flush=True)
    begun = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            stage_command(plan, stage.name, rows, asked.work),
            env=_environment(asked, f"{plan}-{stage.name}") | stage.variables,
            stdin=subprocess.DEVNULL,
            stderr=errors,
            process_group=0,
        )
        try:
            code = process.wait(timeout=limit)
            status = _status_of(code)
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _end(process)
    seconds = time.monotonic() - begun
    record = {"stage": stage.name, "attempt": attempt, "status": status}
    record |= {"seconds": round(seconds, 1), "limit": round(limit, 1)}
    if status != "done":
        record["log"] = _last_lines(log)
        print("\n".join(f"  | {line[:200]}" for line in record["log"][-3:]), flush=True)
    # Beside its rows, for a run that comes after this process has ended.
    stem.with_name(stem.name + ".json").write_text(json.dumps(record), encoding="utf-8")
    record["rows"] = read_rows(rows)
    print(f"{stage.name}: {status}, {seconds:.0f} s, {len(record['rows'])} rows", flush=True)
    return record


def _attempts_before(folder: Path) -> list[dict[str, Any]]:
    """The records of earlier runs' stages; one without a record was interrupted, and its rows are kept all the same."""
    found = []
    for rows in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        match = re.fullmatch(r"(.+)\.(\d+)\.jsonl", rows.name)
        assert match is not None, f"{rows} was not written by this script"
        record = {"stage": match[1], "attempt": int(match[2]), "status": "interrupted"}
        kept = rows.with_suffix(".json")
        if kept.exists():
            record = json.loads(kept.read_text(encoding="utf-8"))
        found.append({**record, "rows": read_rows(rows)})
    return found


def _status_of(code: int) -> str:
    if code < 0:
        return f"died: {signal.Signals(-code).name}"
    return {0: "done", 1: "failed"}.get(code, f"died: exit {code}")


def _environment(asked: Any, name: str) -> dict[str, str]:
    """A stage's environment: the wheels, a folder of compiled programs, XLA's dumps."""
    dump = asked.work / "dump" / name
    dump.mkdir(parents=True, exist_ok=True)
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_module_re=jit_(run|prefill)_chunk.* --xla_dump_emitter_re=ptx"
    paths = [str(asked.work / "site"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(asked.work / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        # Without preallocation, memory has gaps that an 8 GB array does not fit into.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }


def _end(process: subprocess.Popen) -> None:
    """Ends a stage and the processes that it began."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            continue


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_LAST_LINES:]


def _write(asked: Any, record: dict[str, Any], begun: float) -> None:
    path = asked.output / f"{record['plan']}.json"
    written = path.with_name(path.name + ".part")
    document = {**record, "seconds": round(time.monotonic() - begun, 1)}
    written.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    written.replace(path)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of rows; a process that was ended may have left half a one."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
