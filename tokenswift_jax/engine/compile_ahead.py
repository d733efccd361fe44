"""Compilation beside decoding: a thread that gets the programs of plans ready while other plans run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from tokenswift_jax.hardware.environment import usable_cores
from tokenswift_jax.processes.agreement import several
from tokenswift_jax.threads import COMPILING


class CompileAhead:
    """One thread, which XLA lets run beside the session's: compilation holds no lock of Python's."""

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
        """The speed of decoding beside a compilation, as a share of its speed alone: 1 on an accelerator, 0 without a
        core for the thread. On a CPU, decoding loses that core (measured on two: 22.5 ms a step became 43)."""
        if not CompileAhead.has_a_core():
            return 0.0
        return 1.0 if jax.default_backend() != "cpu" else 1 - 1 / usable_cores()

    def begin(self, compile_them: Callable[[Callable[[], bool]], float]) -> Future[float]:
        """Sends a function of `Engine.compiling` to the thread; an error of it is raised by the future's result."""
        if self._executor is None:
            x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
            self._executor = ThreadPoolExecutor(1, COMPILING, initializer=_enter_x64, initargs=(x64,))
        return self._executor.submit(compile_them, self._closed.is_set)

    def close(self) -> None:
        """Drops the programs that XLA has not begun with, and waits for none."""
        self._closed.set()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _enter_x64(enabled: bool) -> None:
    jax.enable_x64(enabled).__enter__()
