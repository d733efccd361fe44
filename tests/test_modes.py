"""The table of modes against the settings and the README, and the trace of the plans that ran."""

import re
from dataclasses import fields
from pathlib import Path

from tokenswift_jax.modes import MODES, NEED_HEADS, SCHEDULES, used_fields
from tokenswift_jax.schedule_trace import ScheduleTrace, trace_entry
from tokenswift_jax.speculation import SpeculationConfig

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_field_has_a_mode_that_uses_it():
    used = set().union(*(used_fields(mode, schedule) for mode in MODES for schedule in SCHEDULES))
    assert used == {field.name for field in fields(SpeculationConfig)} - {"mode"}
    assert used_fields("autoregressive") == frozenset()


def test_fused_drafts_without_a_draft_cache():
    assert used_fields("tokenswift", "partial") - used_fields("tokenswift", "fused") == {
        *("draft_cache", "draft_sinks", "draft_block", "refresh_interval", "draft_cache_dtype")
    }


def test_the_readme_has_the_modes_in_their_order():
    table = README.split("| `--mode` | drafts | needs heads |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`.*\| (yes|no) \|$", table, re.MULTILINE)
    assert [mode for mode, _ in rows] == list(MODES)
    assert [mode for mode, heads in rows if heads == "yes"] == list(NEED_HEADS)


def test_a_trace_has_the_changes_of_a_run_and_continues_a_journal():
    plain, fused = (trace_entry(1, "autoregressive", None, None), trace_entry(9, "tokenswift", "fused", 3))
    trace, run = ScheduleTrace([plain]), [trace_entry(5, "autoregressive", None, None)]
    assert trace.follow(run) == []  # a resumed run names its plan again
    run.append(fused)
    assert trace.follow(run) == [fused]
    assert trace.follow(run) == []
    assert trace.entries == [plain, fused]
    assert trace.of(20) == [plain, fused]
    assert trace.of(9) == [plain]
    assert trace.of(0) == [plain]
