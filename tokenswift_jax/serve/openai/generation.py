"""The parts that completions and chat completions share: choices, their updates, usage, ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest

from tokenswift_jax.finish import CANCELLED, EOS, INTERRUPTED, LENGTH, STOP
from tokenswift_jax.prompt import encode
from tokenswift_jax.scoring import score_tokens
from tokenswift_jax.serve.channel import Channel, read
from tokenswift_jax.serve.openai import logprobs
from tokenswift_jax.serve.openai.errors import ApiError, bad
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.run import Update
from tokenswift_jax.serve.service import Service
from tokenswift_jax.text.detokenizer import BROKEN, Detokenizer
from tokenswift_jax.text.special import special_tokens
from tokenswift_jax.token_log import TokenLogprob, concatenate

# OpenAI's `finish_reason` for ours.
FINISH = {EOS: "stop", STOP: "stop", LENGTH: "length"}


@dataclass
class Choice:
    """One text of an answer.

    Attributes:
      index: its number in the answer.
      prompt_ids: the prompt.
      channel: the updates of its run.
      texts, token_ids, sources, logprobs, finish: its result so far; `sources` as `TokenLog` has them.
    """

    index: int
    prompt_ids: list[int]
    channel: Channel
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)

    def take(self, updates: Sequence[Update]) -> tuple[str, list[int], list[TokenLogprob]]:
        """Adds updates; returns their text, token ids and log-probabilities, if they have any.

        Raises:
          ApiError: the run ended without an answer.
        """
        if failed := [update for update in updates if update.finish is not None and update.finish not in FINISH]:
            raise failure(failed[0])
        log = concatenate([update.log for update in updates])
        ids, text = log.token_ids.tolist(), "".join(update.text for update in updates)
        entries = [] if log.logprobs is None else log.logprobs.of(ids)
        self.texts.append(text)
        self.token_ids += ids
        self.sources += log.sources.tolist()
        self.logprobs += entries
        finish = updates[-1].finish
        self.finish = None if finish is None else FINISH[finish]
        return text, ids, entries


class Offsets:
    """The index in the text at which each token's text begins."""

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int] = (), start: int = 0, given: str | None = None
    ) -> None:
        """The text begins after `prompt_ids`, at index `start`. It is `given`, special tokens included, or None: it is
        what the tokens decode to, without special ones."""
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, prompt_ids)
        self._place, self._given = start, given
        names = {} if tokenizer is None or given is None else special_tokens(tokenizer)
        self._special = {token: name for name, token in names.items()}

    def of(self, token_ids: Sequence[int]) -> list[int]:
        """The places of the next tokens."""
        places = []
        for token in token_ids:
            if self._detokenizer is None:
                places.append(self._place)
                continue
            unfinished = self._detokenizer.unfinished
            piece = self._detokenizer.push(token)
            if unfinished:  # bytes of earlier tokens that this one did not complete
                own = piece.lstrip(BROKEN)
                self._place, piece = self._place + len(piece) - len(own), own
            places.append(self._place)
            special = self._special.get(token, "")
            if special and self._given is not None and self._given.startswith(special, self._place):
                piece = special
            self._place += len(piece)
        return places


def failure(update: Update) -> ApiError:
    """The error of a run that ended before its text did."""
    if update.finish == INTERRUPTED:
        return ApiError(503, "the server went down in the middle of the text", code="interrupted")
    if update.finish == CANCELLED:
        return ApiError(409, "the run was cancelled", code="cancelled")
    return ApiError(500, update.error or "the run failed", code="run_failed")


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, list[Update]], None]:
    """The updates of all choices, as they come; one that `failure` describes comes by itself."""
    async with contextlib.aclosing(read(*(choice.channel for choice in choices))) as newest:
        async for number, updates in newest:
            failing = updates[-1].finish is not None and updates[-1].finish not in FINISH
            parts = [updates[:-1], updates[-1:]] if failing else [updates]
            for part in filter(None, parts):
                yield choices[number], part


async def collected(choices: Sequence[Choice]) -> None:
    """Waits for the end of every choice.

    Raises:
      ApiError: one ended without an answer.
    """
    updates = merged(choices)
    async with contextlib.aclosing(updates):
        async for choice, newest in updates:
            choice.take(newest)


def usage(prompts: Sequence[Sequence[int]], completion_tokens: int, channels: Sequence[Channel]) -> dict[str, Any]:
    """The tokens of prompts, each counted once, and of all texts; `channels` has as many for each prompt, or none."""
    first = channels[:: max(len(channels) // len(prompts), 1)]
    prompt_tokens = sum(map(len, prompts))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(channel.run.cached for channel in first)},
    }


def check_model(fields: Fields, service: Service) -> None:
    """Raises ApiError for the name of another model; a body without a name means the only model."""
    name = fields.text("model")
    if name is not None and name != service.name:
        raise ApiError(
            404, f"the model {name!r:.80} is not here; this server has {service.name}", "model", "model_not_found"
        )


def stream_options(fields: Fields, stream: bool) -> tuple[bool, bool]:
    """Whether to send the usage in a last chunk, and in every chunk too.

    Raises:
      ApiError: options without a stream.
    """
    options = fields.inside("stream_options")
    if options is None:
        return False, False
    if not stream:
        raise bad("stream_options needs stream; leave it out, or set stream to true", "stream_options")
    options.ignore(("include_obfuscation",))
    return options.flag("include_usage"), options.flag("continuous_usage_stats")


def prompt_logprobs(fields: Fields, stream: bool, service: Service) -> int | None:
    """The field `prompt_logprobs`; None where it is absent.

    Raises:
      ApiError: it is wrong, or asks for a part that streams lack.
    """
    top = fields.whole("prompt_logprobs", 0, service.limits.logprobs)
    if top is not None and stream:
        raise bad(
            "prompt_logprobs needs an answer in one piece; leave it out, or set stream to false", "prompt_logprobs"
        )
    return top


async def scored(prompts: Sequence[list[int]], top: int | None, service: Service) -> list[list[logprobs.Place]]:
    """The log-probabilities of prompts in vLLM's form; empty where `top` is None."""
    if top is None:
        return []
    top = min(top, service.model.config.vocab_size)
    texts = [(await service.score(score_tokens, service.model, [prompt], top))[0] for prompt in prompts]
    return [logprobs.of_prompt(text, TokenTexts(service.model.tokenizer)) for text in texts]


def encoded(prompt: Any, service: Service, *, special: bool = True) -> list[int]:
    """The ids of a prompt, text or ids; without `special`, the tokenizer adds no special tokens to text.

    Raises:
      UserError, ApiError: it is neither, or too long.
    """
    model = service.model
    if isinstance(prompt, str):
        check_prompt_bytes(prompt, service, "prompt")
    if isinstance(prompt, str) and prompt and not special and model.tokenizer is not None:
        ids = model.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return encode(ids, None, model.config.vocab_size)
    return encode(prompt, model.tokenizer, model.config.vocab_size)


def check_prompt_bytes(text: str, service: Service, param: str) -> None:
    """Raises ApiError for a text that costs too much to tokenise."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > service.limits.prompt_bytes:
        most = service.limits.prompt_bytes
        raise bad(f"{param} has {size} bytes; the most is {most}", param, "context_length_exceeded")


def remaining_tokens(service: Service, prompt_tokens: int) -> int:
    """The most tokens that fit after a prompt.

    Raises:
      ApiError: none do.
    """
    left = service.max_length - prompt_tokens
    if left < 1:
        raise bad(
            f"the prompt has {prompt_tokens} tokens; the longest text that this server holds, prompt included, has "
            f"{service.max_length}",
            code="context_length_exceeded",
        )
    return left


def owner(request: HttpRequest) -> str:
    """The owner that the guard found."""
    return request.scope["state"]["owner"]
