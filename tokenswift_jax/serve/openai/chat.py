"""The endpoint `/v1/chat/completions`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.generation_config import default_length
from tokenswift_jax.prompt import encode_chat
from tokenswift_jax.request import Request
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.channel import Channel
from tokenswift_jax.serve.openai import generation, logprobs
from tokenswift_jax.serve.openai.errors import ApiError, bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.generation import Choice
from tokenswift_jax.serve.openai.known_fields import OF_ANSWERS, OF_TEMPLATES
from tokenswift_jax.serve.openai.messages import read_messages
from tokenswift_jax.serve.openai.prediction import predicted, prediction_tokens
from tokenswift_jax.serve.openai.settings import TextSettings, read_settings
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.run import new_id
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import DONE, EventStream, frame, until_gone
from tokenswift_jax.token_log import TokenLogprob

_REFUSED = {
    **OF_TEMPLATES,
    **OF_ANSWERS,
    "store": (False,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": (),
}


@dataclass(frozen=True)
class _Asked:
    """A checked body.

    Attributes:
      most: tokens of each answer.
      limit: the field that gave `most`, for errors.
      top: likeliest tokens to show; None: no log-probabilities.
      of_prompt: likeliest tokens to show at each place of the prompt; None: no log-probabilities there.
      prediction: token ids that the answers may resemble; None: none were given.
    """

    fields: Fields
    settings: TextSettings
    prompt: list[int]
    most: int
    limit: str
    n: int
    top: int | None
    of_prompt: int | None
    stream: bool
    include_usage: bool
    every_usage: bool
    return_ids: bool
    token_texts: TokenTexts
    prediction: list[int] | None

    def requests(self, service: Service) -> list[Request]:
        """The requests of all choices."""
        given = service.model, self.prompt, self.most
        return [self.settings.request(*given, choice, self.prediction or ()) for choice in range(self.n)]


async def chat_completions(request: HttpRequest) -> Response:
    """Answers to a conversation, in the checkpoint's own chat template."""
    service: Service = request.app.state.service
    body = await read_json(request, service.limits)
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    with translated({"max_new_tokens": limit, "min_new_tokens": "min_tokens"}):
        asked = await _read(body, service, limit)
        requests = asked.requests(service)
        if asked.stream:
            frames = _frames(asked, requests, service, generation.owner(request))
            await anext(frames)  # errors before the first frame have a status of their own
            return EventStream(frames, asked.fields.notice, service.metrics.disconnected)
        work = _answer(asked, requests, service, generation.owner(request))
        return JSONResponse(await until_gone(request.receive, work), headers=asked.fields.notice)


async def _read(body: dict[str, Any], service: Service, limit: str) -> _Asked:
    fields, limits, model = Fields(body), service.limits, service.model
    generation.check_model(fields, service)
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, limits.logprobs)
    if top and not wanted:
        raise bad("top_logprobs needs logprobs; set logprobs to true, or leave it out", "top_logprobs")
    fields.refuse(_REFUSED)
    fields.refuse({"web_search_options": ()}, empty=False)  # an empty object asks for a search, too
    fields.ignore(("parallel_tool_calls", "max_tokens", "max_completion_tokens"))
    settings = read_settings(fields, model, limits)
    turns = read_messages(fields.get("messages"))
    generation.check_prompt_bytes("".join(turn["content"] for turn in turns), service, "messages")
    stream = fields.flag("stream")
    include, every = generation.stream_options(fields, stream)
    prompt = await service.work(_encoded, turns, service)
    prediction = await predicted(fields, service)
    if settings.truncate is not None:
        prompt = prompt[-settings.truncate :]
    left = generation.remaining_tokens(service, len(prompt))
    most = fields.whole(limit, 1, 2**31 - 1)
    return _Asked(
        fields=fields,
        settings=settings,
        prompt=prompt,
        most=default_length(model.generation_config, len(prompt), left) or left if most is None else most,
        limit=limit,
        n=fields.whole("n", 1, limits.choices) or 1,
        top=(top or 0) if wanted else None,
        of_prompt=generation.prompt_logprobs(fields, stream, service),
        stream=stream,
        include_usage=include,
        every_usage=every,
        return_ids=fields.flag("return_token_ids"),
        token_texts=TokenTexts(model.tokenizer, as_ids=fields.flag("return_tokens_as_token_ids")),
        prediction=prediction,
    )


def _encoded(turns: list[dict[str, str]], service: Service) -> list[int]:
    try:
        return encode_chat(turns, service.model.tokenizer, service.model.config.vocab_size)
    except UserError as error:
        raise bad(str(error), "messages") from None


class _Shape:
    """The objects of one answer.

    Attributes:
      channels: the texts, once their runs are in the queue.
    """

    def __init__(self, asked: _Asked, service: Service) -> None:
        self._asked, self._service = asked, service
        self.channels: Sequence[Channel] = ()
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
            "seed": asked.settings.sampling.seed,
        }

    def answer(self, shown: list[dict[str, Any]], tokens: int | None, choices: Sequence[Choice] = ()) -> dict[str, Any]:
        """The whole object; `tokens` None: without usage; `choices` complete the counts of a prediction."""
        found = None if tokens is None else generation.usage([self._asked.prompt], tokens, self.channels)
        if found is not None and self._asked.prediction is not None and choices:
            found["completion_tokens_details"] = prediction_tokens(self._asked.prediction, choices)
        return {**self._head, "choices": shown, "usage": found}

    @property
    def prompt_ids(self) -> dict[str, Any]:
        """The prompt's ids where the body asks for ids: in the answer, or in the first part of a stream."""
        return {"prompt_token_ids": self._asked.prompt} if self._asked.return_ids else {}

    def choice(
        self, choice: Choice, content: dict[str, Any], ids: list[int], entries: list[TokenLogprob]
    ) -> dict[str, Any]:
        """A choice, or the part of it that an update brought."""
        found = None
        if self._asked.top is not None:
            shown = logprobs.of_chat(entries, self._asked.top, self._asked.token_texts)
            found = {"content": shown, "refusal": None}
        extra: dict[str, Any] = {"token_ids": ids} if self._asked.return_ids else {}
        return {"index": choice.index, **content, "logprobs": found, "finish_reason": choice.finish, **extra}


async def _answer(asked: _Asked, requests: list[Request], service: Service, owner: str) -> dict[str, Any]:
    shape = _Shape(asked, service)
    scored = await generation.scored([asked.prompt], asked.of_prompt, service)
    async with service.runs(requests, owner, logprobs=asked.top is not None, salt=asked.settings.salt) as channels:
        shape.channels = channels
        choices = [Choice(index, asked.prompt, channel) for index, channel in enumerate(channels)]
        await generation.collected(choices)
    shown = []
    for choice in choices:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        shown.append(shape.choice(choice, {"message": message}, choice.token_ids, choice.logprobs))
    tokens = sum(len(choice.token_ids) for choice in choices)
    answer = await service.work(shape.answer, shown, tokens, choices)  # to compare with a prediction may take long
    return {**answer, **shape.prompt_ids, **({"prompt_logprobs": scored[0]} if scored else {})}


async def _frames(asked: _Asked, requests: list[Request], service: Service, owner: str) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer; an empty one comes first, once every run is in the queue."""
    shape, tokens = _Shape(asked, service), 0
    async with service.runs(requests, owner, logprobs=asked.top is not None, salt=asked.settings.salt) as channels:
        shape.channels = channels
        yield b""
        choices = [Choice(index, asked.prompt, channel) for index, channel in enumerate(channels)]
        for choice in choices:
            part = shape.choice(choice, {"delta": {"role": "assistant", "content": ""}}, [], [])
            extra = shape.prompt_ids if not choice.index else {}
            yield frame({**shape.answer([part | {"logprobs": None}], None), **extra})
        updates = generation.merged(choices)
        try:
            async with contextlib.aclosing(updates):
                async for choice, newest in updates:
                    text, ids, entries = choice.take(newest)
                    tokens += len(ids)
                    delta = {"content": text} if text or ids else {}
                    part = shape.choice(choice, {"delta": delta}, ids, entries)
                    yield frame(shape.answer([part], tokens if asked.every_usage else None))
        except ApiError as error:
            yield frame(error.body)
            return
    if asked.include_usage:
        yield frame(await service.work(shape.answer, [], tokens, choices))
    yield DONE
