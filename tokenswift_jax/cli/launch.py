"""The command `launch`: it starts several processes of `generate` on this machine and looks after them."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from tokenswift_jax.cli.command import Parser, exit_status
from tokenswift_jax.cli.converters import whole
from tokenswift_jax.errors import UserError
from tokenswift_jax.processes.cluster import ADDRESS, COUNT, NUMBER, gpus_here

PROGRAM = "python -m tokenswift_jax.launch"
_TICK = 0.05  # seconds between two looks at the processes
_GRACE = 3.0  # seconds that the others have to end by themselves once one has failed
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command; returns the exit status of the process that failed first, or 0."""
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        description="Start several processes of generate on this machine. They share the mesh that --mesh names; with "
        "--documents each is a worker of its own. Each gets its share of the GPUs.",
        epilog="Exit status: that of the process that failed first (128 and the signal's number if a signal ended it). "
        "The others are ended then; workers of --documents go on.",
    )
    parser.add_argument("-n", "--processes", type=whole(1), required=True, metavar="N", help="how many")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="generate ...", help="the command and its flags")
    return exit_status(lambda: _run(parser.parse_args(argv), parser.prog))


def _run(options: argparse.Namespace, program: str) -> int:
    words = options.command
    if words[:1] != ["generate"]:
        given = f"{words[0]!r} is not it" if words else "none is given"
        raise UserError(f"{program} starts the command generate, and {given}")
    workers = any(word.partition("=")[0] == "--documents" for word in words)
    environments = _environments(options.processes, os.environ, gpus_here(os.environ))
    with _started(words, environments) as processes:
        return _watched(processes, together=not workers)


def _environments(count: int, environment: Mapping[str, str], gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment of each process: where the others are, and its share of the GPUs."""
    if 0 < len(gpus) < count:
        raise UserError(f"{count} processes need a GPU each, and there are {len(gpus)}; lower -n")
    address, found = f"127.0.0.1:{_free_port()}", []
    for number in range(count):
        own = dict(environment) | {ADDRESS: address, COUNT: str(count), NUMBER: str(number)}
        if gpus:
            share = len(gpus) // count
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * share : (number + 1) * share])
        found.append(own)
    return found


@contextlib.contextmanager
def _started(words: Sequence[str], environments: Sequence[Mapping[str, str]]) -> Iterator[list[subprocess.Popen]]:
    """The processes; signals to this one are passed on to them, and those that are left at the end are killed.

    Each is the leader of a process group: without that, a terminal sends Ctrl-C to them too, and they get it twice.
    """
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        for number, environment in enumerate(environments):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tokenswift_jax", *words],
                    env=environment,
                    stdin=None if number == 0 else subprocess.DEVNULL,
                    process_group=0 if os.name == "posix" else None,
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(processes: Sequence[subprocess.Popen], *, together: bool) -> int:
    """Waits for the processes; returns the status of the first that failed, else 0.

    If they work `together` and one fails, the others, which would wait for it forever, are ended.
    """
    running, status, ends_at = list(range(len(processes))), 0, float("inf")
    first = ""
    while running:
        ended = [number for number in running if processes[number].poll() is not None]
        running = [number for number in running if number not in ended]
        for number in sorted(ended, key=lambda number: _rank(processes[number].returncode)):
            code = processes[number].returncode
            ending = f"process {number} (pid {processes[number].pid}) {_end(code)}"
            if code and not status:
                status = code if code > 0 else 128 - code
                first, ends_at = ending, time.monotonic() + _GRACE
            if code and (code < 0 or not together):
                print(ending, file=sys.stderr)
        if running and together and time.monotonic() >= ends_at:
            listed = ", ".join(map(str, running))
            print(f"{first}; ended process {listed} too, since they work together", file=sys.stderr)
            for number in running:
                processes[number].kill()
                processes[number].wait()
            return status
        if running and not ended:
            time.sleep(_TICK)
    return status


def _rank(code: int) -> int:
    """The order in which processes that ended at the same moment are named: first those that a signal from outside has
    ended, then those that crashed, as JAX may when a neighbour is gone, then those that noticed it and ended."""
    if code >= 0:
        return 2
    return int(-code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS))


def _end(code: int) -> str:
    if code > 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
