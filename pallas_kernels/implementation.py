"""The implementation with which JAX traces a kernel call: the jnp reference, Mosaic on TPU, or Triton on GPU."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import jax

from pallas_kernels.gpus import Gpu, attached

Implementation = Literal["reference", "tpu", "gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

# Their GPU code uses Pallas' Triton back end, which jax 0.11 deprecated. `prefill_attention` runs on tokamax's kernels.
NEED_TRITON = (
    "add_norm",
    "cache_scores",
    "commit_text",
    "draft_tree",
    "ngram_table",
    "rotate_write",
    "shortlist_edges",
    "sparse_attention",
    "tree_attention",
)

_log = logging.getLogger("pallas_kernels")
_logged: set[str] = set()
# jit keys its caches by this context. Without it, jit would run a program traced for one implementation under another.
_override = jax.make_user_context(None)


def implementation() -> Implementation:
    """The implementation here: that of the enclosing `compiling_for`, else the one for `jax.default_backend()`."""
    if _override.value is not None:
        return _override.value[0]
    backend = jax.default_backend()
    return backend if backend in ("tpu", "gpu") else "reference"


def for_this_process() -> bool:
    """Whether JAX traces for the devices of this process, outside every `compiling_for`."""
    return _override.value is None


def interpret() -> Any:
    """The `interpret` argument of the pallas_calls traced here: that of the enclosing `compiling_for`, else False."""
    return False if _override.value is None else _override.value[1]


def gpu() -> Gpu:
    """The GPU by which kernels here size their programs: that of the enclosing `compiling_for`, else the attached."""
    target = None if _override.value is None else _override.value[2]
    return target or attached()


@contextmanager
def compiling_for(name: Implementation, *, interpret: Any = False, gpu: Gpu | None = None) -> Iterator[None]:
    """Kernels traced inside use the implementation `name`, independent of the device of this process.

    Compilation ahead of time and tests use it. JAX traces a jitted function that is called or lowered inside again for
    the context, and a trace for another context stays valid there; a function that stores executables itself must not
    outlive the context. The context applies to the current thread.

    Args:
      name: "reference", "tpu" or "gpu".
      interpret: the argument of `pl.pallas_call`: False compiles, True interprets, and the TPU kernels also take
        `pltpu.InterpretParams(...)`.
      gpu: the GPU by which kernels size their programs (`gpus.A100`, `gpus.H200`); None for the attached one.

    Raises:
      ValueError: no such implementation, or `interpret` is set for the reference.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if interpret and name == "reference":
        raise ValueError("the reference is plain jnp and has no interpreter; interpret is for tpu and gpu")
    with _override((name, interpret, gpu)):
        yield


def choose(kernel: str, available: tuple[Implementation, ...] = IMPLEMENTATIONS) -> Implementation:
    """The implementation of one kernel here; the log "pallas_kernels" names it once for each kernel and choice.

    Args:
      kernel: the name of its folder.
      available: the implementations in the folder; "reference" is always one, and replaces a wanted one that is not.
    """
    wanted = implementation()
    if wanted == "gpu" and kernel in NEED_TRITON and not has_triton():
        say_once(f"{kernel}: reference; this jax has no Triton back end of Pallas, and jax below 0.13 has one")
        return "reference"
    chosen: Implementation = wanted if wanted in available else "reference"
    say_once(f"{kernel}: {chosen}{' (interpreted)' if interpret() and chosen != 'reference' else ''}")
    return chosen


def has_triton() -> bool:
    """Whether the installed jax has Pallas' Triton back end."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def say_once(message: str) -> None:
    """Logs a message as "pallas_kernels" unless this process has logged it before."""
    if message not in _logged:
        _logged.add(message)
        _log.info(message)
