"""`generate` in several processes: process 0 reads, decides and writes; the others compute with it and keep quiet."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from tokenswift_jax.cli.command import quiet_transformers
from tokenswift_jax.cli.flags import STUCK_SECONDS

# Options that process 0 alone uses, that differ by nature, or that repeat others.
_OWN = {"prompt", "prompt_file", "prompt_ids", "output", "stats", "journal", "quiet", "show_acceptance", "mesh_report"}
_OWN |= {"coordinator", "process_id", "cluster", "stuck_seconds", "sampling", "speculation"}
_VARIABLES = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")  # they change programs


@contextlib.contextmanager
def joined(options: argparse.Namespace, flags: Mapping[str, str]) -> Iterator[None]:
    """Connects this process with the others and checks that all were started alike.

    In other processes than 0 it redirects stdout to the null device and changes the options of files.

    Raises:
      UserError: the processes do not meet, or differ in options or versions; it names them.
    """
    quiet_transformers()
    from importlib.metadata import version

    import jax

    from tokenswift_jax.processes import cluster, interrupts, watchdog
    from tokenswift_jax.processes.agreement import compare

    seconds = STUCK_SECONDS if options.stuck_seconds is None else options.stuck_seconds
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_stdout(leads=options.cluster.number == 0))
        cluster.joined(options.cluster)
        stack.enter_context(watchdog.watched(seconds))
        stack.enter_context(interrupts.noted())
        facts = {flags.get(name, name): value for name, value in vars(options).items() if name not in _OWN}
        facts |= {package: version(package) for package in ("jax", "jaxlib", "tokenswift_jax")}
        facts |= {name: os.environ.get(name, "") for name in _VARIABLES} | {"platform": jax.default_backend()}
        compare("options", facts | {flags["journal"]: options.journal is not None})
        if not options.quiet and options.cluster.number == 0:
            own, every = jax.local_device_count(), jax.device_count()
            print(f"{options.cluster.count} processes, {every} devices, {own} of them here", file=sys.stderr)
        local = jax.local_device_count() * cluster.tasks_here(os.environ)
        line = cluster.idle_devices(options.cluster, local, len(cluster.gpus_here(os.environ)))
        if line is not None:
            print(line, file=sys.stderr)
        if options.cluster.number:
            options.quiet, options.mesh_report = True, False
            options.output = options.stats = options.prompt = options.prompt_file = options.prompt_ids = None
        yield
        watchdog.beat()
        jax.distributed.shutdown()


@contextlib.contextmanager
def _own_stdout(*, leads: bool) -> Iterator[None]:
    """Keeps stdout for the text of process 0: Gloo and NCCL print there, and now print to stderr."""
    try:
        sys.stdout.flush()
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a stream of the operating system
        yield
        return
    before = os.dup(number)
    text = os.fdopen(os.dup(before) if leads else os.open(os.devnull, os.O_WRONLY), "w", encoding=sys.stdout.encoding)
    os.dup2(sys.stderr.fileno(), number)
    try:
        with contextlib.redirect_stdout(text):
            yield
        text.flush()
    finally:
        os.dup2(before, number)
        os.close(before)
        with contextlib.suppress(OSError):
            text.close()
