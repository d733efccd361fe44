"""The body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tokenswift_jax.serve.limits import Limits
from tokenswift_jax.serve.openai.errors import ApiError
from tokenswift_jax.serve.openai.fields import parsed
from tokenswift_jax.serve.sse import GoneError


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
      ApiError: it is too large, arrives too slowly, or is no JSON object.
      GoneError: the client left in the middle of it.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _read(request, limits)
    except TimeoutError:
        raise ApiError(408, f"the body took more than {limits.body_seconds:g} seconds to arrive") from None
    except ClientDisconnect:
        raise GoneError from None
    return parsed(data)


async def _read(request: Request, limits: Limits) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limits.body_bytes:
            raise _too_large(limits)
    return bytes(data)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is larger than {limits.body_bytes} bytes, the most that this server reads")
