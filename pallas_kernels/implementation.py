"""Which implementation a kernel call is traced with: the jnp reference, Mosaic on TPU, or Triton on GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import jax

from pallas_kernels.gpus import Gpu, attached

Implementation = Literal["reference", "tpu", "gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

_log = logging.getLogger("pallas_kernels")
_logged: set[str] = set()
# jit keys its caches by this context, so that nothing traced for one implementation is run for another.
_override = jax.make_user_context(None)


def implementation() -> Implementation:
    """What kernels are traced with here: what `compiling_for` says, else what fits `jax.default_backend()`."""
    if _override.value is not None:
        return _override.value[0]
    backend = jax.default_backend()
    return backend if backend in ("tpu", "gpu") else "reference"


def interpret() -> Any:
    """The `interpret` argument of the pallas_calls traced here: False, unless `compiling_for` says otherwise."""
    return False if _override.value is None else _override.value[1]


def gpu() -> Gpu:
    """The GPU that kernels traced here size their programs by: what `compiling_for` says, else the attached one."""
    target = None if _override.value is None else _override.value[2]
    return target or attached()


@contextmanager
def compiling_for(name: Implementation, *, interpret: Any = False, gpu: Gpu | None = None) -> Iterator[None]:
    """Kernels traced inside use the implementation `name`, whatever this process runs on.

    For compilation ahead of time and for tests. A jitted function called or lowered inside is traced anew for the
    context, and what was traced for another stays valid for that one; a function that keeps executables itself
    must not outlive the context. Holds for the present thread.

    Args:
      name: "reference", "tpu" or "gpu".
      interpret: what `pl.pallas_call` takes: False compiles, True interprets, and the TPU kernels also take
        `pltpu.InterpretParams(...)`.
      gpu: what GPU kernels size their programs by (`gpus.A100`, `gpus.H200`); None for the attached one.

    Raises:
      ValueError: no such implementation, or the reference is to be interpreted.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if interpret and name == "reference":
        raise ValueError("the reference is plain jnp and has no interpreter; interpret is for tpu and gpu")
    with _override((name, interpret, gpu)):
        yield


def choose(kernel: str, available: tuple[Implementation, ...] = IMPLEMENTATIONS) -> Implementation:
    """The implementation of one kernel here, said once a kernel and choice in the log "pallas_kernels".

    Args:
      kernel: the name of its folder.
      available: what the folder holds; "reference" is always among it and serves where the wanted one is not.
    """
    wanted = implementation()
    chosen: Implementation = wanted if wanted in available else "reference"
    say_once(f"{kernel}: {chosen}{' (interpreted)' if interpret() and chosen != 'reference' else ''}")
    return chosen


def say_once(message: str) -> None:
    """Logs a message as "pallas_kernels" if this process has not yet."""
    if message not in _logged:
        _logged.add(message)
        _log.info(message)
