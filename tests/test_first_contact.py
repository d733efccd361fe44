"""scripts/first_contact.py: the plans, stages that die or take too long, plans that go on, the archive, the report."""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/first_contact.py does

import first_contact
from contact import archive, plans, report, runner, stage, wheels

from tokenswift_jax.hardware import check, sections, summary
from tokenswift_jax.hardware.sections import SECTIONS, Check
from tokenswift_jax.hardware.steps import STEPS
from tokenswift_jax.hardware.variants import VARIANTS

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.mark.parametrize("plan", plans.PLANS)
def test_stages_ask_for_what_there_is(plan):
    fields = {field.name for field in dataclasses.fields(Check)} - {"earlier", "report"}
    stages = plans.PLANS[plan]
    kinds = {re.sub(r"\d+", "N", step) for step in STEPS} | {"prefill-N"}
    assert len({each.name for each in stages}) == len(stages)
    for each in stages:
        assert set(each.sections) <= set(SECTIONS)
        assert plans.FEWEST_SECONDS < each.seconds < plans.PLAN_SECONDS
        for small in (False, True):
            settings = plans.settings_of(each, small)
            assert set(settings) == fields
            assert {re.sub(r"\d+", "N", step) for step in settings["steps"]} <= kinds
            assert set(settings["variants"]) <= set(VARIANTS)
            assert settings["capacity"] - max(settings["lengths"]) >= 2048


def test_what_is_worth_most_comes_first():
    assert [each.name for each in plans.FIRST][:3] == ["kernels", "steps", "profile"]
    assert plans.FIRST[0].sections == ("machine", "copy", "kernels")
    assert plans.settings_of(plans.FIRST[1], False)["lengths"] == (16384, 65536, 4096, 126976)
    assert [each.name for each in plans.SECOND][:3] == ["texts-bfloat16", "texts-float32", "verify-64"]


def test_shapes_that_fit_no_gpu_or_one_of_two():
    kind = jnp.dtype(jnp.bfloat16)
    fits = {
        name: sections.where_it_fits(sections.needed_bytes("steps", name, sections.LONGEST, kind))
        for name in ("Llama-3.1-8B", "Qwen2.5-14B", "Yarn-Llama-2-7B")
    }
    both = "H100 80GB and H200 141GB"
    assert fits == {"Llama-3.1-8B": both, "Qwen2.5-14B": both, "Yarn-Llama-2-7B": "H200 141GB"}
    assert sections.where_it_fits(2 * 10**11) == f"no device of {both}"


ROW = {"section": "copy", "n": 1}
GOOD = f"import sys; print('said'); open(sys.argv[1], 'a').write({json.dumps(ROW)!r} + chr(10))"
HALF = "open(sys.argv[1], 'a').write('{\"section\": \"st')"
STAGES = {
    "good": GOOD,
    "dies": f"{GOOD}; import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "slow": f"{GOOD}; {HALF}; import time; sys.stdout.flush(); time.sleep(60)",
    "bad": f"{GOOD}; sys.stderr.write('why it failed'); sys.exit(1)",
    "last": GOOD,
}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The flags of a plan `first` with the stages above."""
    monkeypatch.setitem(runner.PLANS, "first", tuple(plans.Stage(name, (), 30) for name in STAGES))
    monkeypatch.setattr(runner, "FEWEST_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_LAST_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGTERM)

    def command(plan, name, file, work):
        return [sys.executable, "-c", STAGES[name], str(file)]

    monkeypatch.setattr(runner, "stage_command", command)
    command = ["--plan", "first", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "results")]
    asked = first_contact.parse_arguments([*command, "--limit", "slow=1"])
    yield asked
    signal.signal(signal.SIGTERM, before)


def statuses(document):
    return [(each["stage"], each["status"], len(each["rows"])) for each in document["stages"]]


def test_a_stage_that_dies_or_takes_too_long_harms_no_other(settings, capfd):
    begun = time.monotonic()
    assert runner.run_plan("first", settings) == 1
    assert time.monotonic() - begun < 30
    document = json.loads((settings.output / "first.json").read_text())
    assert statuses(document) == [
        ("good", "done", 1),
        ("dies", "died: SIGSEGV", 1),
        ("slow", "out of time", 1),  # the half row is not one
        ("bad", "failed", 1),
        ("last", "done", 1),
    ]
    assert document["stages"][3]["log"] == ["why it failed"]
    assert document["plan"] == "first"
    assert document["stages"][0]["rows"] == [ROW]
    printed = capfd.readouterr().out
    assert "not done: dies, slow, bad" in printed
    assert "  | why it failed" in printed
    with tarfile.open(settings.output / "first.tar.gz") as packed:
        assert {"first/good.1.jsonl", "first/slow.1.log"} <= set(packed.getnames())
    assert not (settings.output / "first.json.part").exists()


def test_a_plan_goes_on_with_what_is_not_done(settings, monkeypatch, capfd):
    runner.run_plan("first", settings)
    # As a process that was ended within a stage would leave it: rows without a record.
    (settings.work / "first" / "dies.1.json").unlink()
    for name in ("dies", "slow", "bad"):
        monkeypatch.setitem(STAGES, name, GOOD)
    capfd.readouterr()
    assert runner.run_plan("first", settings) == 0
    printed = capfd.readouterr().out
    assert "good: done before" in printed
    assert "last: done before" in printed
    document = json.loads((settings.output / "first.json").read_text())
    assert ("dies", "interrupted", 1) in statuses(document)
    assert {each["stage"] for each in document["stages"] if each["status"] == "done"} == set(STAGES)
    assert [each["attempt"] for each in document["stages"] if each["stage"] == "dies"] == [1, 2]
    assert runner.run_plan("first", argparse.Namespace(**{**vars(settings), "again": True})) == 0
    assert "done before" not in capfd.readouterr().out


def test_a_plan_names_the_stages_that_it_has_no_time_for(settings, monkeypatch, capfd):
    monkeypatch.setattr(runner, "FEWEST_SECONDS", 30)
    assert runner.run_plan("first", settings, begun=time.monotonic() - plans.PLAN_SECONDS + 20) == 1
    document = json.loads((settings.output / "first.json").read_text())
    assert {each["status"].split(":")[0] for each in document["stages"]} == {"not started"}
    assert "good: not started, 20 s are left" in capfd.readouterr().out


def test_a_plan_that_is_interrupted_keeps_its_rows_and_ends_its_stage(tmp_path):
    """Killed from outside while a stage sleeps, as a machine's own time limit would."""
    pid = tmp_path / "pid"
    sleeps = f"{GOOD}; import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"""
import argparse, sys; sys.path[:0] = [{str(SCRIPTS)!r}]
from pathlib import Path
from contact import plans, runner
runner.PLANS["first"] = (plans.Stage("sleeps", (), 50), plans.Stage("after", (), 50))
work = Path({str(tmp_path)!r})
def command(plan, name, file, folder): return [sys.executable, "-c", {sleeps!r}, str(file)]
runner.stage_command = command
asked = dict(work=work / "work", output=work / "results", limits=dict(), again=False, seconds=360)
runner.run_plan("first", argparse.Namespace(**asked, archive_megabytes=15))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=20)
    assert "interrupted; run again" in printed
    document = json.loads((tmp_path / "results" / "first.json").read_text())
    assert statuses(document) == [("sleeps", "interrupted", 1)]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.fixture
def run_stage(monkeypatch, tmp_path):
    """Runs a stage in this process and returns its rows and exit status."""
    monkeypatch.setattr(stage, "_end_with_parent", lambda: None)  # it would be this process's parent

    def run(plan, name):
        file = tmp_path / plan / f"{name}.1.jsonl"
        file.parent.mkdir(exist_ok=True)
        status = stage.run_stage(plan, name, file, tmp_path)
        return runner.read_rows(file), status

    return run


def test_a_stage_runs_here_and_its_rows_can_be_read(run_stage, monkeypatch, capsys):
    monkeypatch.setattr(check, "memory_limit", lambda: 4 * 10**9)
    (environment, *rows), status = run_stage("second", "prefill")
    assert status == 0
    assert environment["section"] == "environment"
    assert environment["versions"]["jax"]
    (row,) = rows
    assert (row["section"], row["step"], row["length"], row["device"]) == (
        "steps",
        "prefill",
        300,
        environment["device"],
    )
    assert {"dtype", "model", "stage_seconds", "load_average"} < set(row)
    assert "tiny prefill after 300: " in capsys.readouterr().out
    # A stage reports that its arrays do not fit, and does not try.
    monkeypatch.setattr(check, "memory_limit", lambda: 10**9)
    rows, status = run_stage("second", "prefill")
    assert status == 0
    assert "tiny needs 3 GB, 1 GB are here; it fits H100 80GB and H200 141GB" in rows[-1]["missing"]


def test_a_section_that_fails_is_reported_and_the_next_one_runs(run_stage, monkeypatch, capsys):
    def broken(check):
        yield {"driver": "a driver"}
        raise RuntimeError("no such kernel")

    wrong = {"kernel": "tree_attention", "rows": 16, "relative_error": 0.5, "good": False}
    monkeypatch.setitem(SECTIONS, "machine", broken)
    monkeypatch.setitem(SECTIONS, "copy", lambda check: iter([{"bytes_a_second": 2e12, "operations_a_second": 7e14}]))
    monkeypatch.setitem(SECTIONS, "kernels", lambda check: iter([wrong | {"bandwidth": check.ceilings()[0]}]))
    (_, kept, error, copied, used), status = run_stage("first", "kernels")
    assert status == 1
    assert kept["driver"] == "a driver"
    assert error["error"] == "RuntimeError: no such kernel"
    assert used["bandwidth"] == copied["bytes_a_second"], "a row of this stage serves its later sections"
    printed = capsys.readouterr().out
    assert "machine: ERROR RuntimeError: no such kernel" in printed
    assert "copy 2e+12 bytes/s, products 7e+14 FLOP/s" in printed
    assert "kernels: WRONG: tree_attention of 16 rows is off by 5.0e-01" in printed
    assert "0 of 1 kernels as defined in float64" in printed


def test_an_archive_has_the_worthiest_files_that_fit(tmp_path):
    work = tmp_path / "work"
    files = {
        "first/steps.1.jsonl": b"{}\n" * 10,
        "dump/first-steps/m.thunk_sequence_after_thunk_passes.txt": b"000: kCopy\n" * 1000,
        "dump/first-steps/m.before_optimizations.txt": b"not kept",
        "cache/jit_small-cache": os.urandom(5_000),
        "cache/jit_large-cache": os.urandom(200_000),
        "cache/xla_gpu_per_fusion_autotune_cache_dir/abc.textproto": b"tile: 64",
        "site/flax/core.py": b"not kept",
    }
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    path = tmp_path / "first.tar.gz"
    about = archive.write_archive(work, path, most=50_000)
    assert about["bytes"] == path.stat().st_size <= 50_000
    assert about["left_out"] == ["cache/jit_large-cache"]
    other = tmp_path / "elsewhere"
    archive.unpack(path, other)
    found = {str(each.relative_to(other)) for each in other.rglob("*") if each.is_file()}
    assert found == {name for name in files if "large" not in name and files[name] != b"not kept"}
    assert (other / "cache/jit_small-cache").read_bytes() == files["cache/jit_small-cache"]


def test_a_wheel_that_does_not_fit_costs_no_other(tmp_path):
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    assert wheels.missing(folder) == [f"{name} {version}" for name, version in wheels.WHEELS.items()]
    assert wheels.install(folder, site) == []
    (folder / "pydantic_core-2.50.5-cp312-cp312-manylinux_2_17_x86_64.whl").write_bytes(b"no wheel")
    assert "pydantic-core 2.50.5" not in wheels.missing(folder)
    with zipfile.ZipFile(folder / "einshape-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("einshape/__init__.py", "there = True\n")
        about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("einshape-1.0.dist-info/WHEEL", about)
        wheel.writestr("einshape-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: einshape\nVersion: 1.0\n")
        wheel.writestr("einshape-1.0.dist-info/RECORD", "")
    (failed,) = wheels.install(folder, site)
    assert failed.startswith("pydantic_core-2.50.5")
    assert (site / "einshape" / "__init__.py").exists()
    next(folder.glob("pydantic*")).unlink()
    assert wheels.install(folder, site) == []
    changed = (site / "einshape" / "__init__.py").stat().st_mtime_ns
    assert wheels.install(folder, site) == []
    assert (site / "einshape" / "__init__.py").stat().st_mtime_ns == changed, "what is there is left alone"


def recorded(device="NVIDIA H200"):
    """Two plans as they would have been written, one stage of which died and was run again."""

    def row(section, **more):
        return {"section": section, "device": device, "model": "Llama-3.1-8B", "dtype": "bfloat16", **more}

    def step(name, length, milliseconds, share, floor):
        about = {"step": name, "length": length, "milliseconds": milliseconds, "of_copy_bandwidth": share}
        return row("steps", **about, floor_milliseconds=floor, bytes=1, tokens_a_pass=1.0)

    environment = row("environment", date="2026-12-01", versions={"jax": "0.11.2"})
    copied = row("copy", bytes_a_second=4.3e12, operations_a_second=7.8e14, bytes=2**32, product_size=8192)
    kernel = {"kernel": "tree_attention", "rows": 1}
    checked = row("kernels", **kernel, group=4, head_dim=128, relative_error=0.004, good=True)
    fast = row("kernels", **kernel, length=16384, microseconds=30.0, of_copy_bandwidth=0.52, bytes=67_108_864)

    def text(kind, dtype, leading):
        about = {"mode": kind, "text_dtype": dtype, "tokens": 512, "leading_tokens_of_the_first": leading}
        return row("demo", **about, audit_failed=False, audit={"mismatches": 1}, tokens_a_pass=2.8)

    steps = [step("plain", 16384, 6.0, 0.667, 4.0), step("plain", 65536, 7.6, 0.73, 5.5)]
    steps += [step("verify-16", 16384, 6.5, 0.66, 4.27)]
    first = {
        "plan": "first",
        "notes": ["no wheel of tokamax 0.0.17 in wheels"],
        "stages": [
            {"stage": "kernels", "status": "done", "rows": [environment, copied, checked, fast]},
            {"stage": "steps", "status": "died: SIGSEGV", "rows": [environment, step("plain", 16384, 9.9, 0.1, 4.0)]},
            {"stage": "steps", "status": "done", "rows": [environment, *steps]},
            {"stage": "profile", "status": "out of time", "rows": [environment]},
        ],
    }
    texts = [text(kind, "bfloat16", 300) for kind in ("fused", "partial")] + [text("fused", "float32", 512)]
    second = {
        "plan": "second",
        "notes": [],
        "stages": [
            {"stage": "texts-bfloat16", "status": "done", "rows": [environment, *texts]},
            {"stage": "verify-64", "status": "died: SIGABRT", "rows": [environment]},
        ],
    }
    return first, second


@pytest.fixture
def reported(tmp_path):
    def write(*documents):
        files = [tmp_path / f"{document['plan']}.json" for document in documents]
        for file, document in zip(files, documents, strict=True):
            file.write_text(json.dumps(document))
        lines = report.write_report(files, tmp_path / "report.json")
        return "\n".join(lines), json.loads((tmp_path / "report.json").read_text())

    return write


def test_figures_are_beside_the_predictions_and_the_goals(reported):
    printed, found = reported(*recorded())
    assert "| NVIDIA H200 | Llama-3.1-8B | plain | 16,384 | 6.00 | 67% | 4.00 | 5.88 |" in printed
    assert "| NVIDIA H200 | Llama-3.1-8B | verify-16 | 16,384 | 6.50 | 66% | 4.27 | 6.17 |" in printed
    assert [row["milliseconds"] for row in found if row.get("step") == "plain" and "milliseconds" in row] == [6.0, 7.6]
    goals = [row for row in found if row["section"] == "goals"]
    assert (goals[0]["value"], goals[0]["at_least"], goals[0]["met"]) == (0.667, 0.85, False)
    assert "from 16,384 tokens on: 0.667 (at least 0.85) NOT met" in printed
    replayed = [row for row in found if row["section"] == "replay" and row["step"] == "plain"]
    rising = 6.0 * 16384 + 6.8 * (65536 - 16384) + 7.6 * (100_000 - 65536)  # level before and after what was measured
    assert replayed[0]["seconds"] == pytest.approx(rising / 1e3, rel=1e-4)
    assert "kernels and texts: all 4 right" in printed
    assert "first: profile: out of time" in printed
    assert "first: topkp: not started" in printed
    assert "first: no wheel of tokamax 0.0.17 in wheels" in printed
    assert "second: verify-64: died: SIGABRT" in printed
    assert all(row["device"] == "NVIDIA H200" for row in found)
    versions = [row["versions"] for row in found if row["section"] == "steps"]
    assert versions == [{"jax": "0.11.2"}] * 3


def test_a_wrong_text_or_kernel_is_named_first(reported):
    first, second = recorded()
    second["stages"][0]["rows"][3]["leading_tokens_of_the_first"] = 511  # float32
    first["stages"][0]["rows"][2]["good"] = False
    printed, _ = reported(first, second)
    assert printed.splitlines()[1] == "kernels and texts: WRONG: kernels tree_attention 1; demo float32 fused"
    first["stages"] = second["stages"] = []
    assert reported(first, second)[1] == []


def test_two_machines_are_not_mixed(reported):
    printed, found = reported(recorded()[0], recorded("NVIDIA H100 80GB HBM3")[1])
    assert "== NVIDIA H200" in printed
    assert "== NVIDIA H100 80GB HBM3" in printed
    assert {row["section"] for row in found if row["device"] == "NVIDIA H100 80GB HBM3"} == {*("demo", "goals")}


def test_predictions_are_of_the_device_and_the_step():
    def predicted(device, model, step, length):
        return report.predicted_milliseconds({"device": device, "model": model, "step": step, "length": length})

    assert predicted("NVIDIA H100 80GB HBM3", "Llama-3.1-8B", "plain", 126976) == 13.0
    assert predicted("NVIDIA A100-SXM4-80GB", "Llama-3.1-8B", "plain", 126976) is None
    assert predicted("NVIDIA H100", "Llama-3.1-8B", "plain", 5000) is None
    assert predicted("NVIDIA H100", "Llama-3.1-8B", "verify-64", 16384) is None
    assert predicted("NVIDIA H200", "Llama-3.1-8B", "verify-64", 65536) == pytest.approx(7.51 * 1.26)


@pytest.mark.parametrize("flags", ["", "--plan first --limit nothing=3", "--plan first --limit steps=x"])
def test_a_command_line_that_cannot_be_meant_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as refused:
        first_contact.main(flags.split())
    assert refused.value.code == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert (
        "--plan is needed" in printed or "it is STAGE=SECONDS, a stage one of kernels, profile, steps, topkp" in printed
    )


def test_the_steps_become_a_table(tmp_path):
    """The fastest of the newest day's measurements of a step; of two plans of that day the later one's."""
    row = {"section": "steps", "device": "NVIDIA H200", "model": "Llama-3.1-8B", "step": "plain", "length": 16384}
    row |= {"floor_milliseconds": 4.2, "of_copy_bandwidth": 0.8}

    def stage_of(name, day, taken):
        environment = {"section": "environment", "device": "NVIDIA H200", "date": f"{day}T05:38:30+00:00"}
        return {"stage": name, "status": "done", "rows": [environment, row | {"milliseconds": taken}]}

    stages = [
        stage_of("profile", "2026-11-26", 5.0),
        stage_of("steps", "2026-11-27", 5.5),
        stage_of("topkp", "2026-11-27", 5.25),
    ]
    # A step that was compiled in several ways counts as decoding compiles it.
    for variant, taken in (("joined", 5.3), ("apart", 5.1)):
        stages[1]["rows"].append(row | {"section": "joined", "variant": variant, "milliseconds": taken})
    (tmp_path / "first.json").write_text(json.dumps({"plan": "first", "notes": [], "stages": stages}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- contact:begin -->\nold\n<!-- contact:end -->\nafter\n")
    command = ["--plan", "report", "--output", str(tmp_path), "--table", str(page)]
    assert first_contact.main(command) == 0
    written = page.read_text()
    later = {"plan": "second", "date": "2026-11-27T09:00:00+00:00", "notes": []}
    (tmp_path / "second.json").write_text(json.dumps(later | {"stages": [stage_of("steps", "2026-11-27", 5.35)]}))
    assert first_contact.main(command) == 0
    assert "| 5.35 | 80% | 4.20 | 5.88 | 2026-11-27 second |" in page.read_text()
    before, _, _, _, line, _, after = written.splitlines()
    assert (before, after) == ("before", "after")
    assert line == "| NVIDIA H200 | Llama-3.1-8B | plain | 16,384 | 5.25 | 80% | 4.20 | 5.88 | 2026-11-27 first |"


def test_a_text_that_ends_with_an_error_is_wrong():
    failed = {"section": "demo", "device": "NVIDIA H200", "error": "OverflowError: out of range"}
    assert summary.verdict([failed]) == "WRONG: demo OverflowError: out of range"


def test_a_report_without_figures_says_so(tmp_path, capsys):
    assert first_contact.main(["--plan", "report", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"error: {tmp_path} holds no plan's JSON; run --plan first, or ")


def test_the_plans_need_nothing_but_pythons_own_library():
    """The process that runs a plan must not hold the device, nor fail where jax does not import."""
    code = "import sys; sys.path[:0] = [sys.argv[1]]; import first_contact; print({'jax', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code, str(SCRIPTS)], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "set()", ran.stderr
