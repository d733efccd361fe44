"""The process: uvicorn with limits, and an end that leaves every stored run resumable."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tokenswift_jax.cli.streams import say
from tokenswift_jax.errors import UserError
from tokenswift_jax.serve.security import HEADER_BYTES
from tokenswift_jax.serve.service import Service

_GRACE_SECONDS = 25  # for streams to end after their last event; a supervisor kills after 30


def listening(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 is any free one.

    Raises:
      UserError: the address cannot be used.
    """
    made = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        if made is not None:
            made.close()
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise UserError(f"cannot listen on host {host} port {port}: {reason}; name another", ("host", "port")) from None
    return made


class Server(uvicorn.Server):
    """Ends streams on SIGTERM and Ctrl-C: uvicorn alone would wait for a book to end."""

    def __init__(
        self, app: ASGIApp, service: Service, listener: socket.socket, say: Callable[[str], None] = say
    ) -> None:
        """Serves the application of a service on a socket that listens; `say` prints a line for a person."""
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._service, self._listener, self._say = service, listener, say

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server on a signal: it admits no more runs and finishes the chunks in flight."""
        self._service.drain()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's; ends the process when the engine has stopped, so that a supervisor starts another."""
        if self._service.scheduler.error is not None:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list | None = None) -> None:
        """As uvicorn's; then says where it listens, and later that it is ready."""
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._say(f"listening on http://{shown}:{port}/v1")
        self._say(f"page: http://{shown}:{port}/")
        self._announcer = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        while not self._service.scheduler.ready.is_set():
            await asyncio.sleep(0.1)
        self._say("ready")
