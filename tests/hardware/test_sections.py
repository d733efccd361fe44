"""The sections of a check on an accelerator: kernels, filled steps, variants, tiles."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tokenswift_jax import hardware
from tokenswift_jax.hardware import (
    filled_steps,
    kernel_checks,
    kernel_speed,
    profiler,
    replay,
    shapes,
    steps,
    tile_sweep,
    variants,
)
from tokenswift_jax.hardware.goals import goals
from tokenswift_jax.hardware.sections import SECTIONS, Check

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))  # as python scripts/first_contact.py does

from contact import plans


def test_a_replayed_text_sums_the_steps_at_every_length():
    points = [(10, 1.0), (20, 2.0)]
    assert replay.integral(points, 10) == pytest.approx(10.0)  # level before the first
    assert replay.integral(points, 21) == pytest.approx(10 + np.linspace(1, 2, 11).sum())
    assert replay.integral(points, 31) == pytest.approx(10 + np.linspace(1, 2, 11).sum() + 20)


@pytest.fixture
def check():
    """Settings of sections with tiny shapes after 300 tokens."""
    settings = plans.settings_of(plans.Stage("here", (), 30), small=True)
    settings |= {"steps": ("plain", "verify-16", "prefill"), "lengths": (300,), "capacity": 2560}
    settings |= {"copied_bytes": 10**6, "demo_tokens": 40}
    return Check(**settings, earlier=[], report=lambda line: None)


@pytest.mark.long
def test_the_sections_run_here(check):
    (copied,) = SECTIONS["copy"](check)
    assert copied["bytes_a_second"] > 1e6
    assert copied["operations_a_second"] > 1e6
    check.earlier.append({"section": "copy"} | copied)
    rows = list(SECTIONS["steps"](check))
    assert [row["tokens_a_pass"] for row in (rows[0], rows[2])] == [1.0, steps.ACCELERATOR_ROWS]
    profiled = list(SECTIONS["profile"](check))
    for row in rows:
        expected = row["bytes"] / (row["milliseconds"] / 1e3) / copied["bytes_a_second"]
        assert row["of_copy_bandwidth"] == pytest.approx(expected)
        least = row["bytes"] / copied["bytes_a_second"]
        assert row["floor_milliseconds"] >= 1e3 * least * (1 - 1e-9)
        about, *operations = [found for found in profiled if found["step"] == row["step"]]
        assert about["milliseconds"] > 0
        assert about["busy_milliseconds"] > 0
        assert len(operations) == profiler.TOP
        assert operations[0]["microseconds_a_pass"] >= operations[-1]["microseconds_a_pass"] > 0
        assert any(operation["origin"] for operation in operations)
    timed = [{"section": "steps", "model": "tiny", **row} for row in rows]
    assert all("missing" in row for row in goals(timed)), "nothing was timed after 16,384 tokens"
    replayed = {
        (row["step"], row["acceptance_rate"]): row["seconds"] for row in replay.replayed(timed, "tiny", 1000, [0.6])
    }
    assert replayed["plain", 0.0] == pytest.approx(rows[0]["milliseconds"])  # 1,000 tokens at one measured length
    assert replayed["verify-16", 0.6] == pytest.approx(rows[1]["milliseconds"] / (1 + 3 * 0.6))
    texts = list(SECTIONS["demo"](check))
    assert [row["leading_tokens_of_the_first"] for row in texts] == [40, 40, 40]
    assert not any(row["audit_failed"] for row in texts)
    assert [row["tokens_a_pass"] > 1.5 for row in texts] == [False, True, True], "drafts were verified"


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(kernel_checks, "SHAPES", ((4, 16),))
    monkeypatch.setattr(kernel_checks, "CAPACITY", 320)
    monkeypatch.setattr(kernel_checks, "LENGTHS", (300, 70))
    monkeypatch.setattr(kernel_checks, "BEST", 90)
    monkeypatch.setattr(kernel_checks, "CHUNK", 20)


def test_kernels_are_compared_with_their_definitions(small_cases):
    rows = list(kernel_checks.check_kernels(jnp.dtype(jnp.float32)))
    kernels = ["tree_attention", "sparse_attention"]
    assert [row["kernel"] for row in rows] == 3 * kernels + ["prefill_attention", "cache_scores"]
    assert all(row["good"] for row in rows)


@pytest.mark.parametrize("kernel", ["tree_attention", "sparse_attention", "prefill_attention", "top_positions"])
def test_a_kernel_that_is_wrong_is_found(kernel, small_cases, monkeypatch):
    """An attention that is off by a thousandth; a selection that misses the best key."""
    right = getattr(kernel_checks, kernel)

    def wrong(queries, *arguments, **options):
        if kernel == "top_positions":
            return right(queries, *arguments, **options | {"count": options["count"] + 1})[..., 1:]
        # The definition is the same function, in float64: it stays right.
        mixed = right(queries, *arguments, **options)
        return mixed * np.float32(1.001) if queries.dtype == np.float32 else mixed

    monkeypatch.setattr(kernel_checks, kernel, wrong)
    found = {row["kernel"] for row in kernel_checks.check_kernels(jnp.dtype(jnp.float32)) if not row["good"]}
    assert found == {"cache_scores" if kernel == "top_positions" else kernel}


def test_kernels_are_timed_for_the_bytes_they_must_read(monkeypatch):
    monkeypatch.setattr(kernel_speed, "LAYERS", 2)
    config = shapes.config_of("tiny")
    rows = list(kernel_speed.by_length(config, (300, 200), jnp.dtype(jnp.float32), bandwidth=1e9))
    position = config.num_kv_heads * config.head_dim * 4  # of keys
    read = {(row["kernel"], row["rows"], row["length"]): row["bytes"] for row in rows}
    assert len(read) == 3 * 2 + 2 * 2 + 2 + 2
    assert read["tree_attention", 64, 300] == 2 * position * 300
    assert read["sparse_attention", 16, 300] == 2 * position * 256
    assert read["cache_scores", 1, 200] == position * 200
    for row in rows:
        assert row["of_copy_bandwidth"] == pytest.approx(row["bytes"] / (row["microseconds"] * 1e-6) / 1e9)


def test_a_kernel_is_compiled_once_for_all_lengths(monkeypatch):
    monkeypatch.setattr(kernel_speed, "LAYERS", 3)
    traced = []
    right = kernel_speed.tree_attention

    def counted(queries, *arguments, **options):
        traced.append(queries.shape[1])
        return right(queries, *arguments, **options)

    monkeypatch.setattr(kernel_speed, "tree_attention", counted)
    config = shapes.config_of("tiny")
    list(kernel_speed.by_length(config, (256, 300, 280), jnp.dtype(jnp.float32), bandwidth=1e9))
    assert sorted(traced) == 3 * [1] + 3 * [16] + 3 * [64]


def test_a_filled_step_continues_its_text():
    model = hardware.random_model(hardware.config_of("tiny"), jnp.dtype(jnp.float32))
    step = hardware.filled_step(model, "plain", 100, 512)
    assert [step.call() for _ in range(2)] == [(filled_steps.ITERATIONS, filled_steps.ITERATIONS)] * 2
    assert int(step.call.func.__self__.state.length[0]) == 100 + 2 * filled_steps.ITERATIONS


def test_steps_are_compiled_in_several_ways(check, monkeypatch):
    programs = {}
    monkeypatch.setattr(variants.jax.stages.Lowered, "compile", _noted(programs, variants.jax.stages.Lowered.compile))
    asked = {"steps": ("plain",), "variants": ("joined", "apart", "padded"), "lengths": (20, 30), "capacity": 512}
    rows = list(variants.time_variants(shapes.config_of("tiny"), dataclasses.replace(check, **asked), ("apart",)))
    timed = [(row["variant"], row["length"]) for row in rows if "bytes" in row]
    assert timed == [(variant, length) for variant in asked["variants"] for length in asked["lengths"]]
    assert len(set(programs.values())) >= 3
    assert {row["variant"] for row in rows if "bytes" not in row} == {"apart"}


def _noted(programs, compile_it):
    def noted(lowered, *arguments, **options):
        programs[len(programs)] = lowered.as_text()
        return compile_it(lowered, *arguments, **options)

    return noted


def test_attention_is_swept(monkeypatch):
    asked = ((4, variants.AttentionSizes()), (1, variants.AttentionSizes((16, 64, 4, 2), 3)))
    monkeypatch.setattr(tile_sweep, "VARIANTS", asked)
    rows = list(tile_sweep.sweep(shapes.config_of("tiny"), (40,), jnp.dtype(jnp.float32), 1e9))
    assert [(row["variant"], row["length"], row.get("good")) for row in rows] == [
        ("present", 40 + tile_sweep.RAGGED, True),
        ("present", 40, None),
        ("16x64x4x2, 3 splits", 40 + tile_sweep.RAGGED, True),
        ("16x64x4x2, 3 splits", 40, None),
    ]


def test_the_scripts_run_where_the_project_is_not_installed():
    """A machine that only has its libraries, and was handed this checkout."""
    root = Path(__file__).resolve().parents[2]
    code = """
import sys
root = sys.argv[1]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path[:] = [root + "/scripts", *(path for path in sys.path if path not in ("", root))]
import aot_report, contact, tokenswift_jax
print(tokenswift_jax.__file__)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(root)], cwd="/", capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == str(root / "tokenswift_jax" / "__init__.py"), ran.stderr


def test_every_step_is_one_of_the_reports():
    import aot_report

    assert aot_report.STEPS == steps.STEPS
    assert {*aot_report.MODELS, "tiny"} == set(shapes.NAMES)
