"""Strict numerics for every test: silent promotion is an error."""

import os
from pathlib import Path

import compilation
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = compilation.QUICK
os.environ.setdefault("NPROC", "32")  # fewer threads than virtual devices can deadlock a collective on CPU

import jax

from tokenswift_jax.engine import compile_cache, step_costs
from tokenswift_jax.errors import UserError

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# That modes, schedules and batches agree token for token is proven on programs compiled as a person's are. Everything
# else compares with NumPy, a file, a message or the run's own bookkeeping, and most of its time would be compilation.
_DEFAULT_XLA_OPTIMIZATION = {
    "test_end_to_end.py",
    "test_smollm2_long.py",
    "documents/test_workers.py",
    "pallas_kernels/test_tree_attention_neighbours.py",
    *(f"lossless/test_lossless_{name}.py" for name in ("demo", "distribution", "modes", "transformers")),
}
# Files of few and long tests. Were they last, one core would run them while the other waits (cost: over a minute).
_FIRST = ("test_smollm2.py", "test_smollm2_long.py", "test_end_to_end.py")
# Files, or folders of them, that take more than about 20 seconds. `pytest -n 2 --dist loadfile -m "not slow"` takes
# less than six minutes without them.
_SLOW = (
    *("audit/", "lossless/", "test_end_to_end", "hardware/", "test_smollm2", "training/test_trainer"),
    *(f"engine/test_{name}" for name in ("batch", "engine", "frozen_rows", "logprobs")),
    *("pallas_kernels/test_prefill_attention", "pallas_kernels/test_tree_attention_kernels"),
    *("parallel/test_mesh_decoding", "serve/test_bytes", "serve/test_runs", "serve/test_scheduler"),
    *("speculate/test_golden_draft", "speculate/test_tree", "step/test_memory", "surfaces/test_closed_streams"),
    *("training/test_losses", "training/test_prediction"),
)
# Linux allows a process 65,530 memory maps, and every executable for CPU takes some: a worker that has compiled for
# hundreds of tests would crash in the compiler.
_MAPS = Path("/proc/self/maps")
_MANY = 20_000


def _own(path):
    """The path of a test's file below this folder."""
    return path.relative_to(Path(__file__).parent).as_posix()


def pytest_collection_modifyitems(items):
    """Marks the slow files. Puts the long ones first and then those that compile as for a person: between the two ways
    to compile a worker drops all programs. The rest stays in the order of the names."""
    for item in items:
        if _own(item.path).startswith(_SLOW) or item.get_closest_marker("long"):
            item.add_marker("slow")
    items.sort(key=lambda item: (item.path.name not in _FIRST, _own(item.path) not in _DEFAULT_XLA_OPTIMIZATION))


@pytest.fixture(scope="session", autouse=True)
def costs_stay_in_memory():
    """Keeps no costs of plans between runs: other runs on this machine would decide what `auto` runs."""

    def nowhere(name):
        raise UserError(f"tests keep no {name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_costs, "cache_folder", nowhere)
        yield


@pytest.fixture(scope="module", autouse=True)
def released():
    """Lets go of compiled programs after a module, where they have become many."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
        compile_cache.forget()


@pytest.fixture(scope="module", autouse=True)
def optimised(request):
    """Compiles a module's programs as its tests need them; no program compiled otherwise is met again.

    Commands that a test starts read the same settings from the environment.
    """
    quick = _own(request.path) not in _DEFAULT_XLA_OPTIMIZATION
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    os.environ["XLA_FLAGS"] = compilation.QUICK if quick else compilation.DEVICES
    old = compilation.OLD_FUSIONS
    compile_cache.COMPILER_OPTIONS["cpu"] = {old: True} if old and not quick else {}
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.config.update("jax_disable_most_optimizations", quick)
        compile_cache.forget()
