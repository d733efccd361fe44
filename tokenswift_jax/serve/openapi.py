"""The OpenAPI document of a server: its paths, and the fields that each body may have."""

from __future__ import annotations

import functools
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tokenswift_jax import __version__
from tokenswift_jax.serve.limits import Limits

Schema = dict[str, Any]
_WHOLE = 2**31 - 1
_LIMITS = Limits()


def _kind(name: str, **more: Any) -> Schema:
    return {"type": name, **more}


def _whole(low: int, high: int = _WHOLE) -> Schema:
    return _kind("integer", minimum=low, maximum=high)


def _number(low: float, high: float) -> Schema:
    return _kind("number", minimum=low, maximum=high)


def _list(items: Schema, most: int) -> Schema:
    return _kind("array", items=items, maxItems=most)


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    found = _kind("object", properties=properties)
    return {**found, "required": list(required)} if required else found


_TEXT, _FLAG = _kind("string"), _kind("boolean")
_SHORT = _kind("string", minLength=1, maxLength=_LIMITS.stop_characters)
_IDS = _list(_whole(0), _LIMITS.ids)
_PROMPT = _kind("array", items=_whole(0), minItems=1)
_PART = _object(("type", "text"), type={"enum": ["text", "input_text", "output_text"]}, text=_TEXT)
_CONTENT = _either(_TEXT, _kind("array", items=_PART, minItems=1))
_TURN = _object(("role", "content"), role={"enum": ["system", "developer", "user", "assistant"]}, content=_CONTENT)
_TURNS = _kind("array", items=_TURN, minItems=1)
_PREDICTION = _object(("type", "content"), type={"enum": ["content"]}, content=_CONTENT)
_SAMPLING: dict[str, Schema] = {
    "temperature": _number(0, 1e6),
    "top_p": _number(0, 1),
    "top_k": _whole(-1),
    "min_p": _number(0, 1),
    "eta_cutoff": _number(0, 1),
    "repetition_penalty": _number(1e-6, 1e6),
    "penalty_window": _whole(1),
    "min_tokens_to_keep": _whole(1),
    "suppress_tokens": _IDS,
    "allowed_token_ids": {**_IDS, "minItems": 1},
    "bad_words": _list(_SHORT, _LIMITS.ids),
    "seed": _whole(0, 2**32 - 1),
    "sequence": _whole(0, _WHOLE - _LIMITS.runs),
}
_SETTINGS: dict[str, Schema] = {
    **_SAMPLING,
    "stop": _either(_SHORT, _list(_SHORT, _LIMITS.stops)),
    "stop_token_ids": _IDS,
    "min_tokens": _whole(0),
    "ignore_eos": _FLAG,
    "truncate_prompt_tokens": _whole(1),
    "cache_salt": _kind("string", maxLength=_LIMITS.salt),
}
_ANSWER: dict[str, Schema] = {
    "model": _TEXT,
    "n": _whole(1, _LIMITS.choices),
    "prediction": _PREDICTION,
    "stream": _FLAG,
    "stream_options": _object(include_usage=_FLAG, continuous_usage_stats=_FLAG),
    "return_token_ids": _FLAG,
    "prompt_logprobs": _whole(0, _LIMITS.logprobs),
    "return_tokens_as_token_ids": _FLAG,
    **_SETTINGS,
}
_ON_REPETITION: Schema = {"enum": ["off", "pause", "end"]}
_RUN: dict[str, Schema] = {"name": _kind("string", maxLength=200), "on_repetition": _ON_REPETITION}
_METADATA: Schema = _kind("object", additionalProperties=_kind("string", maxLength=512), maxProperties=_LIMITS.metadata)
_TEXTS: dict[str, Schema] = {
    "model": _TEXT,
    "prompt": _TEXT,
    "content": _TEXT,
    "messages": _TURNS,
    "add_special_tokens": _FLAG,
    "add_generation_prompt": _FLAG,
    "return_token_strs": _FLAG,
}
# Bodies by path.
BODIES: dict[str, Schema] = {
    "/v1/completions": _object(
        ("prompt",),
        prompt=_either(_TEXT, _PROMPT, _kind("array", items=_either(_TEXT, _PROMPT), minItems=1, maxItems=128)),
        max_tokens=_whole(0),
        echo=_FLAG,
        logprobs=_whole(0, _LIMITS.logprobs),
        add_special_tokens=_FLAG,
        **_ANSWER,
    ),
    "/v1/chat/completions": _object(
        ("messages",),
        messages=_TURNS,
        max_completion_tokens=_whole(1),
        max_tokens=_whole(1),
        logprobs=_FLAG,
        top_logprobs=_whole(0, _LIMITS.logprobs),
        **_ANSWER,
    ),
    "/v1/responses": _object(
        ("input",),
        model=_TEXT,
        input=_either(_TEXT, _TURNS),
        instructions=_TEXT,
        previous_response_id=_kind("string", maxLength=64),
        max_output_tokens=_whole(1),
        background=_FLAG,
        store=_FLAG,
        stream=_FLAG,
        metadata=_METADATA,
        **_SETTINGS,
    ),
    "/v1/runs": _object(
        (),
        model=_TEXT,
        prompt=_either(_TEXT, _PROMPT),
        messages=_TURNS,
        add_special_tokens=_FLAG,
        max_tokens=_whole(1),
        **_RUN,
        **_SETTINGS,
    ),
    "/v1/runs/{id}/branch": _object(
        ("at",), model=_TEXT, at=_whole(0), append=_IDS, max_tokens=_whole(1), **_RUN, **_SAMPLING
    ),
    "/v1/runs/{id}/continue": _object(("max_tokens",), model=_TEXT, max_tokens=_whole(1)),
    "/tokenize": _object((), **_TEXTS),
    "/detokenize": _object(("tokens",), model=_TEXT, tokens=_kind("array", items=_whole(0))),
}
_QUERIES: dict[str, dict[str, Schema]] = {
    "/v1/responses/{id}": {"stream": _FLAG, "starting_after": _whole(-1)},
    "/v1/runs": {"after": _TEXT},
    "/v1/runs/{id}/events": {"after": _whole(-1)},
    "/v1/runs/{id}/text.{kind}": {"logprobs": _whole(0, _LIMITS.logprobs)},
    "/v1/runs/{id}/tokens/{at}": {"top": _whole(0, _LIMITS.logprobs)},
}
_TYPES = {
    "/metrics": ("text/plain",),
    "/v1/runs/{id}/events": ("text/event-stream",),
    "/v1/runs/{id}/text.{kind}": ("text/plain", "text/markdown", "application/jsonl"),
}
_CREATED = {("post", "/v1/runs"), ("post", "/v1/runs/{id}/branch")}
_PUBLIC = ("/health", "/ready")
_ERROR = _object(
    ("error",),
    error=_object(
        ("message", "type", "param", "code"),
        message=_TEXT,
        type=_TEXT,
        param=_kind(["string", "null"]),  # pyright: ignore[reportArgumentType]
        code=_kind(["string", "null"]),  # pyright: ignore[reportArgumentType]
    ),
)


@functools.cache
def document(routes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The document for the routes, pairs of path and method."""
    paths: dict[str, Any] = {}
    for path, method in routes:
        paths.setdefault(path, {})[method] = _operation(path, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tokenswift_jax", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    routes = ((route.path.replace(":path", ""), method) for route in request.app.routes for method in route.methods)
    shown = sorted((path, method.lower()) for path, method in routes if method != "HEAD" and _described(path))
    return JSONResponse(document(tuple(shown)))


def _described(path: str) -> bool:
    """Whether the path is part of the interface, and no file of the page."""
    return path != "/" and not path.startswith("/page/")


def _operation(path: str, method: str) -> dict[str, Any]:
    names = [piece.partition("}")[0] for piece in path.split("{")[1:]]
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    if method == "get":
        queries = _QUERIES.get(path, {})
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in queries.items()]
    types = _TYPES.get(path, ("application/json",))
    if method == "get" and "stream" in _QUERIES.get(path, {}):
        types = (*types, "text/event-stream")
    body = BODIES.get(path) if method == "post" else None
    if body is not None and "stream" in body["properties"]:
        types = (*types, "text/event-stream")
    status = "201" if (method, path) in _CREATED else "200"
    found: dict[str, Any] = {
        "parameters": parameters,
        "responses": {
            status: {"description": "The answer.", "content": {kind: {} for kind in types}},
            "default": {
                "description": "An error, or a server that is not ready.",
                "content": {"application/json": {} if path in _PUBLIC else {"schema": _reference()}},
            },
        },
        "security": [] if path in _PUBLIC else [{"key": []}],
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _reference() -> dict[str, str]:
    return {"$ref": "#/components/schemas/Error"}
