"""The updates of one run for any number of readers, each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from tokenswift_jax.serve.run import Run, Update


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
        self._more = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether no more updates come from this server."""
        return bool(self.updates) and self.updates[-1].finish is not None

    def push(self, update: Update) -> None:
        """Adds an update and wakes the readers."""
        self.updates.append(update)
        self._more.set()
        self._more = asyncio.Event()

    async def changed(self) -> None:
        """Waits for the next update."""
        await self._more.wait()

    async def read(self, start: int = 0) -> AsyncGenerator[Update, None]:
        """The updates from number `start` on, up to the end of the run."""
        place = start
        while True:
            while place < len(self.updates):
                yield self.updates[place]
                place += 1
            if self.ended:
                return
            await self._more.wait()
