"""The implementation that a kernel call is traced with; no program traced for one runs for another."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

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
