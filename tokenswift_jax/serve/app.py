"""The ASGI application: `create_app` for any server of such applications."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tokenswift_jax.errors import WriteError
from tokenswift_jax.serve import page_files
from tokenswift_jax.serve.openai import models, responses
from tokenswift_jax.serve.openai.chat import chat_completions
from tokenswift_jax.serve.openai.completions import completions
from tokenswift_jax.serve.openai.errors import ApiError
from tokenswift_jax.serve.openapi import openapi
from tokenswift_jax.serve.runs import endpoints, probabilities
from tokenswift_jax.serve.runs.command import command
from tokenswift_jax.serve.runs.download import download
from tokenswift_jax.serve.runs.lineage import branch, go_on
from tokenswift_jax.serve.security import Guard, Keys, failed
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import GoneError

_CLIENT_GONE = 499  # nginx's status; nobody reads it

ROUTES = (
    Route("/", page_files.index),
    Route(page_files.PREFIX + "{name}", page_files.asset),
    Route("/health", models.health),
    Route("/ready", models.ready),
    Route("/metrics", models.metrics),
    Route("/openapi.json", openapi),
    Route("/v1/models", models.models),
    Route("/v1/models/{name:path}", models.model),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/responses", responses.create, methods=["POST"]),
    Route("/v1/responses/{id}", responses.retrieve),
    Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
    Route("/v1/runs", endpoints.listing),
    Route("/v1/runs", endpoints.create, methods=["POST"]),
    Route("/v1/runs/{id}", endpoints.retrieve),
    Route("/v1/runs/{id}", endpoints.delete, methods=["DELETE"]),
    Route("/v1/runs/{id}/events", endpoints.events),
    Route("/v1/runs/{id}/pause", endpoints.pause, methods=["POST"]),
    Route("/v1/runs/{id}/resume", endpoints.resume, methods=["POST"]),
    Route("/v1/runs/{id}/cancel", endpoints.cancel, methods=["POST"]),
    Route("/v1/runs/{id}/continue", go_on, methods=["POST"]),
    Route("/v1/runs/{id}/branch", branch, methods=["POST"]),
    Route("/v1/runs/{id}/text.{kind}", download),
    Route("/v1/runs/{id}/tokens/{at}", probabilities.token),
    Route("/v1/runs/{id}/command", command),
    Route("/tokenize", models.tokenize, methods=["POST"]),
    Route("/detokenize", models.detokenize, methods=["POST"]),
    Route("/tokenizer_info", models.tokenizer_info),
)


def create_app(service: Service, *, keys: Sequence[str] = (), hosts: Sequence[str] | None = None) -> ASGIApp:
    """The application of a service, which starts and stops with it.

    Args:
      service: the runs.
      keys: the API keys; none: every caller is accepted.
      hosts: the names by which requests may call the server; None: every name.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    handlers = {ApiError: _api_error, HTTPException: _http_error, GoneError: _gone, WriteError: _unwritten}
    handlers[Exception] = _failed  # without it, Starlette answers in plain text
    app = Starlette(routes=ROUTES, lifespan=lifespan, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]
    app.state.service = service
    app.state.probabilities = probabilities.Probabilities(service)
    return Guard(app, Keys(keys), hosts)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"there is nothing at {request.url.path[:100]}", 405: f"{request.method} is not served here"}
    answer = ApiError(error.status_code, messages.get(error.status_code, str(error.detail))).response()
    answer.headers.update(error.headers or {})  # `allow`, with a 405
    return answer


async def _gone(request: Request, _: Exception) -> Response:
    request.app.state.service.metrics.disconnected()
    return Response(status_code=_CLIENT_GONE)


async def _unwritten(_: Request, error: Exception) -> Response:
    return ApiError(500, str(error)).response()


async def _failed(request: Request, _: Exception) -> Response:
    return failed(request.state.request_id).response()
