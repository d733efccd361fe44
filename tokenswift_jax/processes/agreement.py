"""Decisions that are the same in all processes: process 0 makes them, and the others receive its messages.

Messages go through the key-value store of JAX's coordination service, not through the devices: a program that sends
would have to run between the same chunks in every process, and two threads would race for that.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.cgroups import contents

_T = TypeVar("_T")

_PIECE = 1 << 20  # bytes of one value in the store
_KEPT = 256  # newest messages that stay in the store; no process is so far behind, since each chunk waits for all
_POLL = 2_000  # milliseconds; a wait in pieces, so that signals and the watchdog find the thread awake
_FACTS_SECONDS = 600.0  # that all processes have to load what they compare


def several() -> bool:
    """Whether this run has several processes.

    Raises:
      UserError: JAX has no device, for example of the platforms that JAX_PLATFORMS names. Loading asks this first.
    """
    try:
        return jax.process_count() > 1
    except (RuntimeError, AssertionError) as error:  # JAX asserts that one of the platforms named is there
        # JAX makes the attributes of its options as it runs, which no type checker sees.
        named: str | None = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not named:
            raise UserError(f"JAX finds no device: {' '.join(str(error).split())[:200]}") from None
        raise UserError(
            f"JAX finds no device of JAX_PLATFORMS={named}; unset that variable, or install jax for such a device"
        ) from None


def leads() -> bool:
    """Whether this process decides: it is process 0, or alone."""
    return jax.process_index() == 0


class Channel:
    """Messages from process 0 to all others, in one order.

    Args:
      name: of the channel, the same in all processes.
    """

    def __init__(self, name: str = "message") -> None:
        self._folder, self._count = f"tokenswift/{name}", 0

    def send(self, message: Any) -> None:
        """Sends a message to all other processes, from process 0."""
        name, data = self._name(), pickle.dumps(message)
        store, pieces = _store(), max(-(-len(data) // _PIECE), 1)
        for piece in range(pieces):
            store.key_value_set_bytes(f"{name}/{piece}", data[piece * _PIECE : (piece + 1) * _PIECE])
        store.key_value_set(f"{name}/pieces", str(pieces))
        if self._count > _KEPT:
            store.key_value_delete(f"{self._folder}/{self._count - _KEPT}/")

    def receive(self) -> Any:
        """The next message, in another process than 0; waits for it."""
        name = self._name()
        pieces = int(_waited(lambda: _store().blocking_key_value_get(f"{name}/pieces", _POLL)))
        parts = [_waited(lambda at=at: _store().blocking_key_value_get_bytes(f"{name}/{at}", _POLL))
                 for at in range(pieces)]  # fmt: skip
        return pickle.loads(b"".join(parts))

    def _name(self) -> str:
        self._count += 1
        return f"{self._folder}/{self._count}"


_CHANNEL = Channel()
_TEXTS = itertools.count()


def channel() -> Channel:
    """The channel of this run, for decisions that no text makes."""
    return _CHANNEL


def channel_of_a_text() -> Channel:
    """A channel for one text alone; all processes make these channels in one order.

    Processes that end a text by themselves do not read its last messages. In a channel of all texts, they would read
    them in place of the next text's first ones.
    """
    number = next(_TEXTS)
    if leads() and number >= 2:  # no process reads it any more, since all have computed the text after it
        _store().key_value_delete(f"tokenswift/text{number - 2}/")
    return Channel(f"text{number}")


def agreed(decide: Callable[[], _T]) -> _T:
    """The result of `decide` in process 0, in all processes; alone, just its result.

    Raises:
      UserError, OSError: process 0 raised it.
    """
    if not several():
        return decide()
    if not leads():
        result, error = channel().receive()
        if error is not None:
            raise error
        return result
    try:
        result = decide()
    except (UserError, OSError) as error:
        channel().send((None, UserError(f"process 0: {error}")))
        raise
    channel().send((result, None))
    return result


def compare(stage: str, facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same facts; call it in all of them.

    Args:
      stage: identifies the comparison.
      facts: values by the name that a person knows them by.

    Raises:
      UserError: one process differs from process 0; it names the facts.
    """
    if not several():
        return
    store, own = _store(), json.dumps(dict(facts), sort_keys=True, default=str)
    store.key_value_set(f"tokenswift/facts/{stage}/{jax.process_index()}", own)

    def differences() -> list[str]:
        found = []
        for process in range(1, jax.process_count()):
            key = f"tokenswift/facts/{stage}/{process}"
            theirs = json.loads(_waited(lambda key=key: store.blocking_key_value_get(key, _POLL), _FACTS_SECONDS))
            mine = json.loads(own)
            found += [
                f"{name} is {_short(theirs.get(name))} in process {process} and {_short(mine.get(name))} in process 0"
                for name in sorted({*mine, *theirs})
                if mine.get(name) != theirs.get(name)
            ]
        return found

    found = agreed(differences)
    if found:
        raise UserError(f"the processes differ: {'; '.join(found[:3])}; start all of them alike")


def processes_here() -> frozenset[int]:
    """The numbers of the run's processes on this machine, this one's included.

    The first call waits for the other processes: call it in all of them.

    Raises:
      UserError: a process has not called it in time.
    """
    return _processes_on(_machine()) if several() else frozenset({jax.process_index()})


@functools.cache
def _processes_on(machine: str) -> frozenset[int]:
    """The numbers of the processes on this process's machine, by its name."""
    store, folder = _store(), "tokenswift/machine"
    store.key_value_set(f"{folder}/{jax.process_index()}", machine)

    def of(process: int) -> str:
        return _waited(lambda: store.blocking_key_value_get(f"{folder}/{process}", _POLL), _FACTS_SECONDS)

    return frozenset(process for process in range(jax.process_count()) if of(process) == machine)


def _machine() -> str:
    """A name that processes share if they share a machine, or a container on it."""
    return f"{socket.gethostname()} {contents(Path('/proc/sys/kernel/random/boot_id')).strip()}"


def _waited(get: Callable[[], _T], seconds: float | None = None) -> _T:
    """The result of a get that raises while there is none; waits so long, or without an end."""
    begun = time.monotonic()
    while True:
        try:
            return get()
        except Exception as error:  # jaxlib's class for a deadline differs by version
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if seconds is not None and time.monotonic() - begun > seconds:
                raise UserError("a process has not answered; see its messages") from None


def _store() -> Any:
    from jax._src import distributed  # JAX has no public name for the store

    client = distributed.global_state.client
    assert client is not None, "jax.distributed is not initialised"
    return client


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
