"""Server-sent events: frames, pings, and a response that notices a client's leaving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
# One newline: openai's Python client takes a blank line for the end of an event, and fails on an empty one
# (openai/openai-python#2722).
PING = b": ping\n"
PING_SECONDS = 15.0
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
_T = TypeVar("_T")


def frame(data: Mapping[str, Any], event: str | None = None) -> bytes:
    """One event. JSON escapes line ends, so that its data is one line, and its characters are whole."""
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return (b"" if event is None else b"event: " + event.encode() + b"\n") + b"data: " + line + b"\n\n"


class GoneError(Exception):
    """The client has closed its connection."""


async def until_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled if the client leaves first.

    Raises:
      GoneError: it did.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        for each in (task, watcher):
            await _cancelled(each)


class EventStream(Response):
    """Sends frames as they come, and a ping where none comes for a while.

    Headers go out at once, so that proxies and clients see a first byte while a prompt waits.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        headers: Mapping[str, str] | None = None,
        on_gone: Callable[[], None] = lambda: None,
        ping_seconds: float | None = None,
    ) -> None:
        """`on_gone` is called when the client leaves before the last frame."""
        self.status_code, self.background, self._frames, self._on_gone = 200, None, frames, on_gone
        self._ping = PING_SECONDS if ping_seconds is None else ping_seconds
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response; leaves the generator closed."""
        try:
            await until_gone(receive, self._send(send))
        except (GoneError, OSError):
            self._on_gone()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent = time.monotonic()
        pings = asyncio.ensure_future(self._pings(send))  # one for all frames: a timer for each costs as much as it
        try:
            async for data in self._frames:
                self._sent = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            await _cancelled(pings)
            close = getattr(self._frames, "aclose", None)
            if close is not None:
                await close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pings(self, send: Send) -> None:
        while True:
            silent = time.monotonic() - self._sent
            if silent < self._ping:
                await asyncio.sleep(self._ping - silent)
                continue
            self._sent = time.monotonic()
            await send({"type": "http.response.body", "body": PING, "more_body": True})


async def _cancelled(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
