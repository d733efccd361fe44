"""The endpoints `/v1/responses`: texts that go on without their connection, and streams that are rejoined."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.generation_config import default_length
from tokenswift_jax.prompt import encode_chat
from tokenswift_jax.request import Request
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.channel import Channel, read
from tokenswift_jax.serve.kept_runs import delete_kept, find_kept
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import ApiError, bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.known_fields import OF_ANSWERS, OF_COMPLETIONS, OF_TEMPLATES
from tokenswift_jax.serve.openai.messages import read_messages
from tokenswift_jax.serve.openai.response_events import Event, ResponseEvents, status_of
from tokenswift_jax.serve.openai.settings import read_settings
from tokenswift_jax.serve.run_store import StoredRun, UnreadableError
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import EventStream, frame, until_gone

_NAMES = {"max_new_tokens": "max_output_tokens", "min_new_tokens": "min_tokens"}
_REFUSED = {
    **OF_TEMPLATES,
    **OF_ANSWERS,
    **OF_COMPLETIONS,
    "max_tokens": (),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "context_management": (),
    "enable_response_messages": (False,),
    "previous_input_messages": (),
    "conversation": (),
    "include": (),
    "prompt": (),
    "truncation": ("disabled",),
    "max_tool_calls": (),
    "moderation": (),
}
_MOST_CHARACTERS = {"key": 64, "value": 512}  # OpenAI's, of metadata


@dataclass(frozen=True)
class _Asked:
    """A checked body.

    Attributes:
      details: the description that outlives the server.
    """

    fields: Fields
    request: Request
    details: dict[str, Any]
    ignore_eos: bool
    background: bool
    store: bool
    stream: bool


async def create(request: HttpRequest) -> Response:
    """Begins a response: in the background, or as the answer of this request."""
    service: Service = request.app.state.service
    owner = generation.owner(request)
    body = await read_json(request, service.limits)
    with translated(_NAMES):
        asked = await _read(body, service, owner)
        if asked.background and not asked.stream:
            channel = await _created(asked, service, owner)
            return JSONResponse(_events(channel, asked).object("queued"), headers=asked.fields.notice)
        frames = _frames(asked, service, owner)
        await anext(frames)  # errors before the first frame have a status of their own
        if asked.stream:
            return EventStream(_encoded(frames), asked.fields.notice, service.metrics.disconnected)
        return JSONResponse(await until_gone(request.receive, _last(frames)), headers=asked.fields.notice)


async def retrieve(request: HttpRequest) -> Response:
    """A kept response, or its events after number `starting_after`."""
    service: Service = request.app.state.service
    stored, channel = await find_kept(request, "responses")
    query = request.query_params
    if query.get("stream", "false").lower() != "true":
        return JSONResponse(_object(stored, channel))
    after = query.get("starting_after", "-1")
    if not after.removeprefix("-").isdecimal() or len(after) > 12:
        raise bad(f"starting_after is {after[:20]!r}; it must be the number of an event", "starting_after")
    return EventStream(_encoded(_replayed(stored, channel, int(after))), None, service.metrics.disconnected)


async def cancel(request: HttpRequest) -> Response:
    """Ends a background response; one that has ended stays as it is."""
    service: Service = request.app.state.service
    stored, channel = await find_kept(request, "responses")
    if not stored.background:
        raise bad("only background responses can be cancelled; close the connection of this one")
    if not stored.run.state.ended:
        service.scheduler.cancel(stored.run)
        await channel.finished()
    return JSONResponse(_object(stored, channel))


async def delete(request: HttpRequest) -> Response:
    """Ends a response and removes everything about it."""
    run_id = await delete_kept(request, "responses")
    return JSONResponse({"id": run_id, "object": "response", "deleted": True})


async def _read(body: dict[str, Any], service: Service, owner: str) -> _Asked:
    fields, model = Fields(body), service.model
    generation.check_model(fields, service)
    fields.refuse(_REFUSED)
    fields.ignore(("parallel_tool_calls",))
    reasoning = fields.inside("reasoning")
    if reasoning is not None:
        reasoning.refuse({"effort": ("none",), "summary": (), "generate_summary": ()})
    text = fields.inside("text")
    if text is not None:
        text.refuse({"format": ({"type": "text"},), "verbosity": ("medium",)})
    settings = read_settings(fields, model, service.limits)
    background, store = fields.flag("background"), fields.flag("store", service.store is not None)
    if store and service.store is None:
        raise bad("store: this server keeps no responses; set store to false", "store")
    if background and not store:
        raise bad("background needs store; set store to true, or leave it out", "background")
    stream = fields.flag("stream")
    options = fields.inside("stream_options")
    if options is not None:
        options.ignore(("include_obfuscation",))
    instructions, previous = fields.text("instructions"), fields.text("previous_response_id", 64)
    turns = await _history(previous, service, owner) + _turns(fields.get("input"))
    conversation = ([] if instructions is None else [{"role": "system", "content": instructions}]) + turns
    generation.check_prompt_bytes("".join(turn["content"] for turn in conversation), service, "input")
    prompt = await service.work(_prompt, conversation, service)
    if settings.truncate is not None:
        prompt = prompt[-settings.truncate :]
    left = generation.remaining_tokens(service, len(prompt))
    most = fields.whole("max_output_tokens", 1, 2**31 - 1)
    sampling = settings.sampling
    details = {
        "surface": "responses",
        "model": service.name,
        "turns": turns,
        "instructions": instructions,
        "previous_response_id": previous,
        "max_output_tokens": most,
        "metadata": _metadata(fields, service),
        "user": fields.text("user", 512),
        "temperature": sampling.temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "seed": sampling.seed,
        "cache_salt": settings.salt,
    }
    most = default_length(model.generation_config, len(prompt), left) or left if most is None else most
    made = settings.request(model, prompt, most, 0)
    return _Asked(fields, made, details, settings.ignore_eos, background, store, stream)


def _turns(value: Any) -> list[dict[str, str]]:
    """The turns of `input`: text is one turn of the user; items other than messages are refused."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    for item in value if isinstance(value, list) else []:
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind != "message":
            raise bad(f"input has an item of type {str(kind)[:40]}; this server reads messages alone", "input")
    return read_messages(value, "input")


async def _history(previous: str | None, service: Service, owner: str) -> list[dict[str, str]]:
    """The turns up to the answer of an earlier response."""
    if previous is None:
        return []
    try:
        found = await service.find(previous, owner)
    except UnreadableError as error:
        raise bad(f"the response {previous} cannot be read here: {error}", "previous_response_id") from None
    if found is None or "turns" not in found[0].details:
        raise ApiError(404, f"there is no response {previous!r}", "previous_response_id", "response_not_found")
    stored, channel = found
    if not stored.run.state.ended:
        raise bad(f"the response {previous!r} has not ended yet", "previous_response_id")
    answer = "".join(update.text for update in channel.updates)
    return [*stored.details["turns"], {"role": "assistant", "content": answer}]


def _prompt(turns: list[dict[str, str]], service: Service) -> list[int]:
    try:
        return encode_chat(turns, service.model.tokenizer, service.model.config.vocab_size)
    except UserError as error:
        raise bad(str(error), "input") from None


def _metadata(fields: Fields, service: Service) -> dict[str, str]:
    value = fields.get("metadata")
    if value is None:
        return {}
    texts = isinstance(value, dict) and all(
        isinstance(each, str) and len(name) <= _MOST_CHARACTERS["key"] and len(each) <= _MOST_CHARACTERS["value"]
        for name, each in value.items()
    )
    if not texts or len(value) > service.limits.metadata:
        raise fields.wrong("metadata", value, f"an object of up to {service.limits.metadata} short texts")
    return value


async def _created(asked: _Asked, service: Service, owner: str) -> Channel:
    return await service.create(
        asked.request, owner, asked.details, kind="resp", background=asked.background, ignore_eos=asked.ignore_eos
    )


@contextlib.asynccontextmanager
async def _channel(asked: _Asked, service: Service, owner: str) -> AsyncIterator[Channel]:
    """The updates of a new response; one in the foreground is cancelled when the block ends."""
    if not asked.store:
        salt = asked.details["cache_salt"]
        async with service.runs([asked.request], owner, kind="resp", salt=salt) as (channel,):
            yield channel
        return
    channel = await _created(asked, service, owner)
    try:
        yield channel
    finally:
        if not asked.background and not channel.run.state.ended:
            service.scheduler.cancel(channel.run)


def _events(channel: Channel, asked: _Asked) -> ResponseEvents:
    return ResponseEvents(channel.run, asked.details, background=asked.background, store=asked.store)


async def _frames(asked: _Asked, service: Service, owner: str) -> AsyncGenerator[list[Event], None]:
    """The events of a new response; an empty list comes first, once its run is in the queue."""
    async with _channel(asked, service, owner) as channel:
        yield []
        events = _events(channel, asked)
        yield events.begin()
        async with contextlib.aclosing(_taken(events, channel, asked.background)) as taken:
            async for newest in taken:
                yield newest
        # Without this error, an answer in one piece would hide that the server went down before the text had ended.
        if not asked.stream and channel.run.state.ended and channel.run.finish == INTERRUPTED:
            yield [_interrupted(channel, asked.background)]


async def _replayed(stored: StoredRun, channel: Channel, after: int) -> AsyncGenerator[list[Event], None]:
    """The events after a number, from the first token on."""
    events = ResponseEvents(stored.run, stored.details, background=stored.background, store=True)
    yield [event for event in events.begin() if event["sequence_number"] > after]
    async with contextlib.aclosing(_taken(events, channel, stored.background)) as taken:
        async for newest in taken:
            yield [event for event in newest if event.get("sequence_number", after + 1) > after]


async def _taken(events: ResponseEvents, channel: Channel, background: bool) -> AsyncGenerator[list[Event], None]:
    """The events of all updates; those of a server that goes down end with an error, which has no number."""
    async with contextlib.aclosing(read(channel)) as newest:
        async for _, updates in newest:
            yield [event for update in updates for event in events.take(update)]
            if updates[-1].finish == INTERRUPTED and not updates[-1].state.ended:
                yield [_interrupted(channel, background)]


def _interrupted(channel: Channel, background: bool) -> dict[str, Any]:
    """The error that ends the streams of a server that goes down."""
    where = f"; GET /v1/responses/{channel.run.id}?stream=true goes on after a restart" if background else ""
    return ApiError(503, f"interrupted: the server goes down{where}", code="interrupted").body


async def _encoded(events: AsyncGenerator[list[Event], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(events):
        async for newest in events:
            if newest:
                yield b"".join(frame(event, event.get("type")) for event in newest)


async def _last(events: AsyncGenerator[list[Event], None]) -> dict[str, Any]:
    """The response of the last event.

    Raises:
      ApiError: the server went down first.
    """
    event: dict[str, Any] = {}
    async with contextlib.aclosing(events):
        async for newest in events:
            event = newest[-1] if newest else event
    if "error" in event:
        raise ApiError(503, event["error"]["message"], code="interrupted")
    return event["response"]


def _object(stored: StoredRun, channel: Channel) -> dict[str, Any]:
    events = ResponseEvents(stored.run, stored.details, background=stored.background, store=True)
    events.begin()
    for update in channel.updates:
        events.take(update)
    return events.object(status_of(stored.run))
