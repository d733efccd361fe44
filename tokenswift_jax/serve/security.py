"""The guard before every endpoint: hosts, keys, origins, and headers of answers."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenswift_jax.serve.openai.errors import ApiError
from tokenswift_jax.serve.page_files import public_paths

logger = logging.getLogger("tokenswift_jax.serve")
# Health tells nothing but whether the server works, the page nothing at all.
PUBLIC = frozenset({"/health", "/ready"}) | public_paths()
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADER_BYTES = 16 * 1024
_NOT_IN_HOSTS = frozenset("@/?#\\")  # in a URL, a host ends or begins at these
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def failed(request_id: str) -> ApiError:
    """The answer for a fault of this program."""
    return ApiError(500, f"the server failed on request {request_id}; its log says why")


class Keys:
    """The keys that a server accepts; without any, it accepts every caller.

    A key also names its owner: the owner of runs is a hash of the key, and fairness is between owners.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def owner(self, key: str | None) -> str | None:
        """The owner that a key names; None for a key that the server does not accept."""
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, and each comparison takes the same time wherever the digests differ.
        found = [hmac.compare_digest(digest, each) for each in self._digests]
        if self._digests and not any(found):
            return None
        return digest.hex()[:16] if key else ""


def presented(headers: Headers) -> str | None:
    """The key of a request: a bearer token, or the header X-Api-Key."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


class Guard:
    """Middleware that refuses by default; ASGI alone, since Starlette's base class hides a client's leaving.

    It answers for names of the allowed hosts alone, so that no web page reaches a loopback server under a name of its
    own, and refuses requests that change something and come from pages of other origins.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Sequence[str] | None) -> None:
        """`hosts` None: every name is allowed."""
        self._app, self._keys = app, keys
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on with `state.owner` and `state.request_id`."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket; there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id, begun = f"req_{secrets.token_hex(12)}", False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(raw=message["headers"])
                for name, value in {**_HEADERS, "x-request-id": request_id}.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                message["headers"] = headers.raw
            await send(message)

        try:
            scope.setdefault("state", {})["owner"] = self._check(scope)
            scope["state"]["request_id"] = request_id
            await self._app(scope, receive, with_headers)
        except ApiError as error:
            await error.response()(scope, receive, with_headers)
        except Exception:
            logger.exception("request %s failed", request_id)
            if begun:
                raise
            await failed(request_id).response()(scope, receive, with_headers)

    def _check(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise ApiError(431, f"the headers are larger than {HEADER_BYTES} bytes, the most that this server reads")
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, "the Host of the request is not a name of this server; --allowed-host adds one")
        if scope["path"] in PUBLIC:
            return ""
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in _SAFE_METHODS:
            allowed = {host} if self._hosts is None else self._hosts
            if _host_of(origin) not in allowed:
                raise ApiError(403, "requests from pages of other origins are not allowed")
        owner = self._keys.owner(presented(headers))
        if owner is None:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return owner


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" for what is no such header."""
    return "" if set(host) & _NOT_IN_HOSTS else _host_of(f"//{host}")


def _host_of(url: str) -> str:
    """The host of a URL in small letters; "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
