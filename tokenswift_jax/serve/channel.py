"""The updates of one run for any number of readers, each at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from tokenswift_jax.serve.run import Run, Update

_MOST = 64  # updates that a reader gets at once: those of a whole book would keep the event loop from others


class Channel:
    """All updates of a run so far; the event loop's thread alone calls it.

    A slow reader delays nobody: it has a place of its own in the list.

    Attributes:
      run: the run.
      updates: its updates.
    """

    def __init__(self, run: Run, updates: Sequence[Update] = ()) -> None:
        """`updates` are those of a run that was read from the folder."""
        self.run, self.updates = run, list(updates)
        self._listeners: set[asyncio.Event] = set()

    @property
    def ended(self) -> bool:
        """Whether no more updates come from this server."""
        return bool(self.updates) and self.updates[-1].finish is not None

    def push(self, updates: Sequence[Update]) -> None:
        """Adds updates and wakes the readers."""
        self.updates += updates
        for listener in self._listeners:
            listener.set()

    @contextlib.contextmanager
    def listening(self, listener: asyncio.Event) -> Iterator[None]:
        """Sets an event whenever updates come."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    async def changed(self) -> None:
        """Waits for the next update."""
        more = asyncio.Event()
        with self.listening(more):
            await more.wait()

    async def finished(self) -> None:
        """Waits for the last update."""
        while not self.ended:
            await self.changed()


async def read(*channels: Channel) -> AsyncGenerator[tuple[int, list[Update]], None]:
    """The updates of one channel or several, up to the end of all: the number of a channel, and all that came."""
    more, places = asyncio.Event(), [0] * len(channels)
    with contextlib.ExitStack() as stack:
        for channel in channels:
            stack.enter_context(channel.listening(more))
        while True:
            more.clear()
            for number, channel in enumerate(channels):
                newest = channel.updates[places[number] : places[number] + _MOST]
                places[number] += len(newest)
                if newest:
                    yield number, newest
            if any(place < len(channel.updates) for place, channel in zip(places, channels, strict=True)):
                await asyncio.sleep(0)  # lets other tasks run
            elif all(channel.ended for channel in channels):
                return
            else:
                await more.wait()
