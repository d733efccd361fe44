"""The implementation that a kernel call is traced with; no program traced for one runs for another."""

import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import implementation as implementations
from pallas_kernels.add_norm import add_norm
from pallas_kernels.implementation import choose, compiling_for, implementation, interpret

CODES = {"reference": 0, "tpu": 1, "gpu": 2}


@jax.jit
def traced(x):
    return x + CODES[implementation()] + 10 * bool(interpret())


def test_cpu_runs_the_reference():
    assert implementation() == "reference"
    assert interpret() is False


def test_a_jitted_function_is_traced_for_each_context():
    x = jnp.int32(0)
    assert int(traced(x)) == 0
    with compiling_for("tpu"):
        assert int(traced(x)) == 1
        with compiling_for("gpu", interpret=True):
            assert int(traced(x)) == 12
        assert int(traced(x)) == 1
    assert int(traced(x)) == 0


def test_the_context_reaches_loop_bodies():
    def steps(x):
        return jax.lax.while_loop(lambda s: s < 5, lambda s: s + CODES[implementation()], x)

    with compiling_for("gpu"):
        assert int(jax.jit(steps)(jnp.int32(0))) == 6


def test_unknown_names_and_an_interpreted_reference():
    with (
        pytest.raises(ValueError, match="no implementation 'cuda'; there are reference, tpu, gpu"),
        compiling_for("cuda"),
    ):
        pass
    with pytest.raises(ValueError, match="plain jnp"), compiling_for("reference", interpret=True):
        pass


def test_a_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "pallas_kernels"):
        for _ in range(3):
            assert choose("some_kernel") == "reference"
            with compiling_for("tpu", interpret=True):
                assert choose("some_kernel") == "tpu"
                assert choose("other_kernel", ("reference", "gpu")) == "reference"
    assert caplog.messages == [
        "some_kernel: reference",
        "some_kernel: tpu (interpreted)",
        "other_kernel: reference",
    ]


@pytest.mark.parametrize("package", ["pallas_kernels", "tokenswift_jax", "convert"])
def test_no_library_is_patched_at_run_time(package):
    files = list((Path(__file__).parents[2] / package).rglob("*.py"))
    assert files
    assert [file for file in files if "unittest" in file.read_text()] == []


def test_without_triton_its_kernels_are_the_reference(monkeypatch, caplog):
    """The list is the folders' own imports: a kernel that gets another GPU body leaves it, a new one joins it."""
    folder = Path(implementations.__file__).parent
    triton = (
        r"jax.experimental.pallas import triton|pallas_kernels.gpu_memory|pallas_kernels.tree_attention import gpu$"
    )
    needing = {
        path.parent.name for path in folder.glob("*/*.py") if re.search(f"(?m)^from ({triton})", path.read_text())
    }
    assert sorted(needing) == list(implementations.NEED_TRITON)
    monkeypatch.setattr(implementations, "has_triton", lambda: False)
    monkeypatch.setattr(implementations, "_logged", set())
    with compiling_for("gpu"), caplog.at_level(logging.INFO, "pallas_kernels"):
        assert {choose(kernel) for kernel in needing} == {"reference"}
        assert choose("prefill_attention") == "gpu"
    assert "tree_attention: reference; this jax has no Triton back end" in caplog.text


def test_a_residual_sum_without_triton_is_the_references(monkeypatch):
    given = jnp.arange(128, dtype=jnp.float32).reshape(2, 64), jnp.ones((2, 64)), jnp.ones(64), 1e-5
    expected = add_norm(*given)
    monkeypatch.setattr(implementations, "has_triton", lambda: False)
    with compiling_for("gpu"):  # not interpreted: a kernel could not run on a CPU
        found = add_norm(*given)
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()
