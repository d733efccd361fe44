"""The endpoint `/v1/completions`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.request import Request
from tokenswift_jax.scoring import score_tokens
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.channel import Channel
from tokenswift_jax.serve.openai import generation, logprobs
from tokenswift_jax.serve.openai.errors import ApiError, bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.generation import Choice, Offsets
from tokenswift_jax.serve.openai.prediction import predicted, prediction_tokens
from tokenswift_jax.serve.openai.settings import NAMES, TextSettings, read_settings
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.run import new_id
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import DONE, EventStream, frame, until_gone
from tokenswift_jax.token_log import TokenLogprob

_DEFAULT_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class _Asked:
    """A checked body.

    Attributes:
      texts: the prompts as text; None for prompts of ids.
      most: tokens of each text; 0 scores the prompts alone, with `echo`.
      top: likeliest tokens to show; None: no log-probabilities.
      of_prompt: likeliest tokens to show at each place of a prompt, in vLLM's form; None: none.
      prediction: token ids that the texts may resemble; None: none were given.
    """

    fields: Fields
    settings: TextSettings
    prompts: list[list[int]]
    texts: Sequence[str | None]
    most: int
    n: int
    echo: bool
    top: int | None
    of_prompt: int | None
    stream: bool
    include_usage: bool
    every_usage: bool
    return_ids: bool
    token_texts: TokenTexts
    prediction: list[int] | None

    def requests(self, service: Service) -> list[Request]:
        """The requests of all choices, those of the first prompt first."""
        if not self.most:
            return []
        return [
            self.settings.request(service.model, prompt, self.most, choice, self.prediction or ())
            for prompt in self.prompts
            for choice in range(self.n)
        ]


async def completions(request: HttpRequest) -> Response:
    """Texts that continue prompts; with `echo`, and `logprobs`, also the log-probabilities of the prompts."""
    service: Service = request.app.state.service
    body = await read_json(request, service.limits)
    with translated(NAMES):
        asked = await _read(body, service)
        requests = asked.requests(service)
        echoed = await _echoed(asked, service) if asked.echo and asked.top is not None else {}
        if asked.stream:
            frames = _frames(asked, requests, echoed, service, generation.owner(request))
            await anext(frames)  # errors before the first frame have a status of their own
            return EventStream(frames, asked.fields.notice, service.metrics.disconnected)
        work = _answer(asked, requests, echoed, service, generation.owner(request))
        return JSONResponse(await until_gone(request.receive, work), headers=asked.fields.notice)


async def _read(body: dict[str, Any], service: Service) -> _Asked:
    fields, limits, model = Fields(body), service.limits, service.model
    generation.check_model(fields, service)
    settings = read_settings(fields, model, limits)
    fields.refuse({"suffix": (), "store": (False,)})
    n = fields.whole("n", 1, limits.choices) or 1
    best = fields.whole("best_of", 1, limits.choices)
    if best is not None and best != n:
        raise bad("best_of is not supported by this server; leave it out, or give the value of n", "best_of")
    echo = fields.flag("echo")
    most = fields.whole("max_tokens", 0 if echo else 1, 2**31 - 1)
    stream = fields.flag("stream")
    include, every = generation.stream_options(fields, stream)
    top = fields.whole("logprobs", 0, limits.logprobs)
    special = fields.flag("add_special_tokens", True)
    prompts, texts = await service.work(_prompts, fields, service, special)
    prediction = await predicted(fields, service)
    if len(prompts) * n > limits.runs:
        raise bad(f"{len(prompts)} prompts times n {n} is above {limits.runs}, the most texts of one request", "n")
    if settings.truncate is not None:
        prompts = [prompt[-settings.truncate :] for prompt in prompts]
        texts = [None for _ in prompts]
    most = _DEFAULT_TOKENS if most is None else most
    for prompt in prompts:
        most_here = generation.remaining_tokens(service, len(prompt) - (not most))
        if body.get("max_tokens") is None:
            most = min(most, most_here)
    return _Asked(
        fields=fields,
        settings=settings,
        prompts=prompts,
        texts=texts,
        most=most,
        n=n,
        echo=echo,
        top=top,
        of_prompt=generation.prompt_logprobs(fields, stream, service),
        stream=stream,
        include_usage=include,
        every_usage=every,
        return_ids=fields.flag("return_token_ids"),
        token_texts=TokenTexts(model.tokenizer, as_ids=fields.flag("return_tokens_as_token_ids")),
        prediction=prediction,
    )


def _prompts(fields: Fields, service: Service, special: bool) -> tuple[list[list[int]], Sequence[str | None]]:
    """Token ids of every prompt, and its text where it was given as text."""
    value = fields.get("prompt")
    if value is None:
        raise bad("prompt is missing; give text, token ids, or a list of either", "prompt")
    listed = value if isinstance(value, list) else [value]
    if listed and all(type(one) is int for one in listed):
        listed = [listed]
    if not listed or not all(isinstance(one, str | list) for one in listed):
        raise fields.wrong("prompt", value, "text, token ids, or a list of either, none of them empty")
    if len(listed) > service.limits.prompts:
        raise bad(f"prompt has {len(listed)} entries; the most is {service.limits.prompts}", "prompt")
    prompts, texts = [], []
    for one in listed:
        try:
            prompts.append(generation.encoded(one, service, special=special))
        except UserError as error:
            raise bad(str(error), "prompt") from None
        texts.append(one if isinstance(one, str) else None)
    return prompts, texts


async def _echoed(asked: _Asked, service: Service) -> dict[int, list[TokenLogprob | None]]:
    """The log-probabilities of every prompt, by its number."""
    found: dict[int, list[TokenLogprob | None]] = {}
    for number, prompt in enumerate(asked.prompts):
        top = min(max(asked.top or 0, 1), service.model.config.vocab_size)
        (scored,) = await service.score(score_tokens, service.model, [prompt], top)
        tops = zip(scored.top_ids.tolist(), scored.top_logprobs.tolist(), strict=True)
        pairs = [list(zip(ids, values, strict=True)) for ids, values in tops]
        entries = zip(prompt[1:], scored.logprobs.tolist(), pairs, strict=True)
        found[number] = [None, *(TokenLogprob(*entry) for entry in entries)]
    return found


class _Shape:
    """The objects of one answer.

    Attributes:
      channels: the texts, once their runs are in the queue.
    """

    def __init__(self, asked: _Asked, service: Service, echoed: dict[int, list[TokenLogprob | None]]) -> None:
        self._asked, self._service, self._echoed = asked, service, echoed
        self.channels: Sequence[Channel] = ()
        self._tokenizer = service.model.tokenizer
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
            "seed": asked.settings.sampling.seed,
        }
        self._offsets: dict[int, Offsets] = {}

    def answer(self, shown: list[dict[str, Any]], tokens: int | None, choices: Sequence[Choice] = ()) -> dict[str, Any]:
        """The whole object; `tokens` None: without usage; `choices` complete the counts of a prediction."""
        found = None if tokens is None else generation.usage(self._asked.prompts, tokens, self.channels)
        if found is not None and self._asked.prediction is not None and choices:
            found["completion_tokens_details"] = prediction_tokens(self._asked.prediction, choices)
        return {**self._head, "choices": shown, "usage": found}

    def prompt_text(self, number: int) -> str:
        """The text of a prompt, for `echo`."""
        given = self._asked.texts[number]
        if given is not None:
            return given
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(self._asked.prompts[number], skip_special_tokens=True)

    def first(self, index: int) -> dict[str, Any]:
        """The part of a choice that `echo` asks for: the prompt."""
        number = index // self._asked.n
        text, ids = self.prompt_text(number), self._asked.prompts[number]
        found = None
        if number in self._echoed:
            offsets = Offsets(self._tokenizer, given=self._asked.texts[number]).of(ids)
            found = self._logprobs(self._echoed[number], offsets, ids)
        return self._choice(index, text, found, None, [])

    def next(self, choice: Choice, text: str, ids: list[int], entries: list[TokenLogprob]) -> dict[str, Any]:
        """The part of a choice that an update brought."""
        found = None
        if self._asked.top is not None:
            start = len(self.prompt_text(choice.index // self._asked.n)) if self._asked.echo else 0
            if choice.index not in self._offsets:
                self._offsets[choice.index] = Offsets(self._tokenizer, choice.prompt_ids, start)
            found = self._logprobs(entries, self._offsets[choice.index].of(ids), ids)
        return self._choice(choice.index, text, found, choice.finish, ids)

    def prompt_ids(self, index: int) -> dict[str, Any]:
        """The prompt's ids of a choice where the body asks for ids: in the answer, or in its first part of a stream."""
        return {"prompt_token_ids": self._asked.prompts[index // self._asked.n]} if self._asked.return_ids else {}

    def _logprobs(self, entries: Sequence[TokenLogprob | None], offsets: list[int], ids: list[int]) -> dict[str, Any]:
        return logprobs.of_completion(entries, offsets, self._asked.top or 0, self._asked.token_texts, ids)

    def _choice(self, index: int, text: str, found: Any, finish: str | None, ids: list[int]) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": found, "finish_reason": finish}
        if self._asked.return_ids:
            choice["token_ids"] = ids
        return choice


async def _answer(
    asked: _Asked,
    requests: list[Request],
    echoed: dict[int, list[TokenLogprob | None]],
    service: Service,
    owner: str,
) -> dict[str, Any]:
    shape = _Shape(asked, service, echoed)
    scored = await generation.scored(asked.prompts, asked.of_prompt, service)
    async with service.runs(requests, owner, logprobs=asked.top is not None, salt=asked.settings.salt) as channels:
        shape.channels = channels
        choices = _choices(asked, channels)
        await generation.collected(choices)
    shown = []
    for index in range(len(asked.prompts) * asked.n):
        parts = [shape.first(index)] if asked.echo else []
        if choices:
            choice = choices[index]
            parts.append(shape.next(choice, choice.text, choice.token_ids, choice.logprobs))
        whole = _joined(parts) | {"finish_reason": choices[index].finish if choices else "length"}
        if scored:
            whole["prompt_logprobs"] = scored[index // asked.n]
        shown.append(whole | shape.prompt_ids(index))
    tokens = sum(len(choice.token_ids) for choice in choices)
    return await service.work(shape.answer, shown, tokens, choices)  # to compare with a prediction may take long


async def _frames(
    asked: _Asked,
    requests: list[Request],
    echoed: dict[int, list[TokenLogprob | None]],
    service: Service,
    owner: str,
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer; an empty one comes first, once every run is in the queue."""
    shape, tokens = _Shape(asked, service, echoed), 0
    async with service.runs(requests, owner, logprobs=asked.top is not None, salt=asked.settings.salt) as channels:
        shape.channels = channels
        yield b""
        choices = _choices(asked, channels)
        if asked.echo:
            for index in range(len(asked.prompts) * asked.n):
                part = shape.first(index) | ({} if choices else {"finish_reason": "length"})
                yield frame(shape.answer([part | shape.prompt_ids(index)], None))
        updates = generation.merged(choices)
        try:
            async with contextlib.aclosing(updates):
                async for choice, newest in updates:
                    begins = not choice.texts and not asked.echo
                    text, ids, entries = choice.take(newest)
                    tokens += len(ids)
                    part = shape.next(choice, text, ids, entries)
                    if begins:
                        part |= shape.prompt_ids(choice.index)
                    yield frame(shape.answer([part], tokens if asked.every_usage else None))
        except ApiError as error:
            yield frame(error.body)
            return
    if asked.include_usage:
        yield frame(await service.work(shape.answer, [], tokens, choices))
    yield DONE


def _choices(asked: _Asked, channels: Sequence[Any]) -> list[Choice]:
    return [Choice(index, asked.prompts[index // asked.n], channel) for index, channel in enumerate(channels)]


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice from its parts: the prompt, then the text."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    found = None
    if first["logprobs"] is not None:
        found = {name: first["logprobs"][name] + second["logprobs"][name] for name in first["logprobs"]}
    return {**second, "text": first["text"] + second["text"], "logprobs": found}
