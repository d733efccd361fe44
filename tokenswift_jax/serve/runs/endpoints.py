"""The endpoints `/v1/runs`: create, list, follow, pause, resume, cancel, delete."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.generation_config import default_length
from tokenswift_jax.prompt import encode_chat
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.channel import Channel, read
from tokenswift_jax.serve.kept_runs import delete_kept, find_kept
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import ApiError, bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.known_fields import OF_ANSWERS, OF_COMPLETIONS, OF_TEMPLATES
from tokenswift_jax.serve.openai.messages import read_messages
from tokenswift_jax.serve.openai.settings import NAMES, read_settings
from tokenswift_jax.serve.run import OnRepetition, RunState
from tokenswift_jax.serve.run_store import StoredRun
from tokenswift_jax.serve.runs.objects import Places, run_object, summary
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import EventStream, frame

_LISTED = 100  # runs of one answer
_REFUSED = {
    **OF_TEMPLATES,
    **OF_ANSWERS,
    **OF_COMPLETIONS,
    "add_generation_prompt": (True,),
    "stream": (False,),
    "store": (True,),
}
NAME_CHARACTERS = 200


async def create(request: HttpRequest) -> Response:
    """Begins a run of `prompt` (text or token ids) or `messages`; it needs no connection to go on."""
    service: Service = request.app.state.service
    body = await read_json(request, service.limits)
    with translated(NAMES):
        fields = Fields(body)
        keeping(service)
        generation.check_model(fields, service)
        fields.refuse(_REFUSED)
        settings = read_settings(fields, service.model, service.limits)
        name = fields.text("name", NAME_CHARACTERS)
        looping = read_on_repetition(fields) or OnRepetition.OFF
        prompt = await service.work(_prompt, fields, service)
        if settings.truncate is not None:
            prompt = prompt[-settings.truncate :]
        left = generation.remaining_tokens(service, len(prompt))
        most = fields.whole("max_tokens", 1, 2**31 - 1)
        if most is None:
            most = default_length(service.model.generation_config, len(prompt), left) or left
        made = settings.request(service.model, prompt, most, 0)
        made = replace(made, stop_on_repetition=looping is OnRepetition.END)
        details: dict[str, Any] = {
            "surface": "runs",
            "name": name,
            "on_repetition": looping,
            "cache_salt": settings.salt,
        }
        channel = await service.create(made, generation.owner(request), details, ignore_eos=settings.ignore_eos)
    stored, _ = await found(request, channel.run.id)
    return JSONResponse(run_object(stored, service.scheduler), 201, fields.notice)


async def listing(request: HttpRequest) -> Response:
    """The caller's runs, the newest first; `after` is the last id of the page before."""
    service: Service = request.app.state.service
    described = await service.listed(generation.owner(request))
    runs = [summary(each) for each in described if each.surface == "runs"]
    after = request.query_params.get("after")
    place = 0 if after is None else next((number + 1 for number, run in enumerate(runs) if run["id"] == after), None)
    if place is None:
        raise bad(f"after: there is no run {after!r:.80}; it may be deleted; begin with the first page", "after")
    page = runs[place : place + _LISTED]
    for run in page:  # runs in memory are further than the folder says
        known = service.known(run["id"])
        if known is not None:
            run |= {"state": known.run.state.value, "tokens": len(known.run.tokens)}
    return JSONResponse({"object": "list", "data": page, "has_more": place + _LISTED < len(runs)})


async def retrieve(request: HttpRequest) -> Response:
    """One run."""
    stored, _ = await found(request)
    return JSONResponse(run_object(stored, request.app.state.service.scheduler))


async def events(request: HttpRequest) -> Response:
    """The updates of a run as they come; `after`, or the header Last-Event-ID, is the number of the last one seen."""
    _, channel = await found(request)
    after = request.query_params.get("after", request.headers.get("last-event-id", "-1"))
    if not after.removeprefix("-").isdecimal() or len(after) > 12:
        raise bad(f"after is {after[:20]!r}; it must be the number of an event", "after")
    return EventStream(_frames(channel, int(after)), None, request.app.state.service.metrics.disconnected)


async def pause(request: HttpRequest) -> Response:
    """Takes a run off the device; its tokens stay."""
    service: Service = request.app.state.service
    stored, channel = await found(request)
    if stored.run.state.ended:
        raise ApiError(409, f"the run has ended: {stored.run.state.value}")
    await service.paused(stored, channel)
    return JSONResponse(run_object(stored, service.scheduler))


async def resume(request: HttpRequest) -> Response:
    """Lets a paused run go on, to the tokens that it would have had."""
    service: Service = request.app.state.service
    stored, _ = await found(request)
    if stored.run.state is not RunState.PAUSED:
        raise ApiError(409, f"the run is not paused: {stored.run.state.value}")
    with translated(NAMES):
        await service.resumed(stored)
    return JSONResponse(run_object(stored, service.scheduler))


async def cancel(request: HttpRequest) -> Response:
    """Ends a run; its text stays."""
    service: Service = request.app.state.service
    stored, channel = await found(request)
    if not stored.run.state.ended:
        service.scheduler.cancel(stored.run)
        await channel.finished()
    return JSONResponse(run_object(stored, service.scheduler))


async def delete(request: HttpRequest) -> Response:
    """Ends a run and removes everything about it."""
    run_id = await delete_kept(request, "runs")
    request.app.state.probabilities.forget(run_id)
    return JSONResponse({"id": run_id, "object": "run", "deleted": True})


async def found(request: HttpRequest, run_id: str | None = None) -> tuple[StoredRun, Channel]:
    """The caller's run of an id, by default the one in the path.

    Raises:
      ApiError: there is none, or it cannot be read.
    """
    return await find_kept(request, "runs", run_id)


def read_on_repetition(fields: Fields) -> OnRepetition | None:
    """The field `on_repetition`; None where it is absent."""
    name = fields.text("on_repetition")
    if name is not None and name not in set(OnRepetition):
        raise fields.wrong("on_repetition", name, f"one of {', '.join(OnRepetition)}")
    return None if name is None else OnRepetition(name)


def keeping(service: Service) -> None:
    """Raises ApiError for a server without a folder."""
    if service.store is None:
        raise bad("this server keeps no runs; it was started without a folder for them")


def _prompt(fields: Fields, service: Service) -> list[int]:
    prompt, messages, model = fields.get("prompt"), fields.get("messages"), service.model
    if (prompt is None) == (messages is None):
        raise bad("give one of prompt and messages", "prompt")
    param = "prompt" if messages is None else "messages"
    try:
        if messages is not None:
            fields.refuse({"add_special_tokens": (False,)})  # the template has them
            turns = read_messages(messages)
            generation.check_prompt_bytes("".join(turn["content"] for turn in turns), service, param)
            return encode_chat(turns, model.tokenizer, model.config.vocab_size)
        return generation.encoded(prompt, service, special=fields.flag("add_special_tokens", True))
    except UserError as error:
        raise bad(str(error), param) from None


async def _frames(channel: Channel, after: int) -> AsyncGenerator[bytes, None]:
    """The updates after a number. An update with tokens is a record of the journal and has a number of its own, which a
    restart keeps; any other has the number of the record before it."""
    places, number = Places(), -1
    async with contextlib.aclosing(read(channel)) as newest:
        async for _, updates in newest:
            frames = []
            for update in updates:
                event = places.event(update)
                number += bool(len(update.log))
                if number > after or (number == after and not len(update.log)):
                    frames.append(b"id: %d\n" % number + frame(event))
            if frames:
                yield b"".join(frames)
