"""Compilation beside decoding: a thread that gets the programs of plans ready while other plans run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from tokenswift_jax.hardware.environment import usable_cores
from tokenswift_jax.processes.agreement import several
from tokenswift_jax.threads import COMPILING

# On two cores a program of SmolLM2 that compiles in 4.2 s took 9.7 s beside decoding, whose threads poll for work.
# Without this, a text of 200 tokens took 9.7 s instead of 4.2 for a plan that came after its end.
STRETCH = 2.3
# 4,096 tokens of an 8B took 20.0 s on an H200 beside a compilation, 18.1 s without: XLA tries kernels on the device,
# and JAX traces the program in Python. benchmarks/2026-11-27-device-h200-contact-fourth.json
ON_ACCELERATOR = 0.9


class CompileAhead:
    """One thread beside the session's. XLA releases Python's lock while it compiles; JAX holds it while it traces."""

    def __init__(self) -> None:
        """Starts no thread before the first program."""
        self._executor: ThreadPoolExecutor | None = None
        self._closed = threading.Event()

    @staticmethod
    def has_a_core() -> bool:
        """Whether a core is left for the thread, and programs run on one device; a mesh belongs to its thread. In
        several processes, all have to compile the same programs in one order."""
        return usable_cores() > 1 and jax.sharding.get_abstract_mesh().empty and not several()

    @staticmethod
    def pace() -> float:
        """The speed of decoding beside a compilation, as a share of its speed alone: ON_ACCELERATOR on an
        accelerator, 0 without a core for the thread. On a CPU, decoding loses that core (measured on two: 22.5 ms
        a step became 43).
        """
        if not CompileAhead.has_a_core():
            return 0.0
        return ON_ACCELERATOR if jax.default_backend() != "cpu" else 1 - 1 / usable_cores()

    @staticmethod
    def stretch() -> float:
        """The time of a compilation beside decoding, relative to one alone: STRETCH on a CPU, 1 on an accelerator and
        where decoding waits for it."""
        return STRETCH if jax.default_backend() == "cpu" and CompileAhead.has_a_core() else 1.0

    def begin(self, compile_them: Callable[[Callable[[], bool]], float]) -> Future[float]:
        """Sends a function of `Engine.compiling` to the thread; an error of it is raised by the future's result."""
        if self._executor is None:
            x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
            self._executor = ThreadPoolExecutor(1, COMPILING, initializer=_enter_x64, initargs=(x64,))
        return self._executor.submit(compile_them, self._closed.is_set)

    def close(self) -> None:
        """Drops the programs that XLA has not begun to compile, and waits for none."""
        self._closed.set()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _enter_x64(enabled: bool) -> None:
    jax.enable_x64(enabled).__enter__()
