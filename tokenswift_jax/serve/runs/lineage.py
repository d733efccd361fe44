"""Runs that go on from others: continue beyond a limit, branch at a token."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.finish import EOS, REPETITION, STOP
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import ApiError, bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.known_fields import HARMLESS, OF_COMPLETIONS, OF_TEMPLATES, UNSUPPORTED
from tokenswift_jax.serve.openai.settings import KEPT_OUT, NAMES, read_sampling
from tokenswift_jax.serve.run import OnRepetition, Run, RunState
from tokenswift_jax.serve.runs.endpoints import NAME_CHARACTERS, found, read_on_repetition
from tokenswift_jax.serve.runs.objects import run_object
from tokenswift_jax.serve.service import Service
from tokenswift_jax.token_log import SAMPLED, TokenLog, concatenate, from_columns

_APPENDED = 4096  # tokens that a branch may be given
_OF_DRAWS = dict.fromkeys([*asdict(SamplingConfig()), *KEPT_OUT], ())
# Fields that say where a text ends, and what it begins with.
_OF_ENDS = "stop", "stop_token_ids", "min_tokens", "ignore_eos", "cache_salt"
_OF_PROMPTS = "prompt", "messages", "add_special_tokens", "truncate_prompt_tokens", *OF_TEMPLATES
_OF_PARENT = dict.fromkeys([*_OF_ENDS, *_OF_PROMPTS], ())


async def go_on(request: HttpRequest) -> Response:
    """Lets a run go on to a larger `max_tokens`: to the text that it would have had with that limit from the start."""
    service: Service = request.app.state.service
    fields = Fields(await read_json(request, service.limits))
    generation.check_model(fields, service)
    stored, _ = await found(request)
    fields.refuse(_OF_DRAWS, "cannot change in a run that goes on; branch from it to change how tokens are drawn")
    fields.refuse(_OF_PARENT, "cannot change in a run that goes on")
    fields.refuse(UNSUPPORTED | OF_COMPLETIONS)
    run = stored.run
    most = fields.whole("max_tokens", 1, 2**31 - 1)
    if most is None or most <= run.request.max_new_tokens:
        raise bad(f"max_tokens must be above {run.request.max_new_tokens}, the run's limit", "max_tokens")
    if not (run.state.ended or run.state is RunState.PAUSED):
        raise ApiError(409, f"the run is {run.state.value}; pause it first")
    if run.finish in (EOS, STOP, REPETITION):
        raise ApiError(409, f"the text has come to its own end ({run.finish}); branch before it")
    with translated(NAMES):
        if await service.reopened(stored, most) is None:
            await found(request)  # it may be gone
            raise ApiError(409, f"the run is {run.state.value}; pause it first")
    stored, _ = await found(request)
    return JSONResponse(run_object(stored, service.scheduler), headers=fields.notice)


async def branch(request: HttpRequest) -> Response:
    """A new run with the first `at` tokens of another, then `append` (token ids), then tokens of its own.

    With the parent's settings it writes the parent's text again; `seed`, `sequence` and the other fields that say how
    tokens are drawn change it from there on.
    """
    service: Service = request.app.state.service
    fields = Fields(await read_json(request, service.limits))
    generation.check_model(fields, service)
    fields.refuse(UNSUPPORTED | OF_COMPLETIONS)
    fields.refuse(_OF_PARENT, "is not changed by a branch, which has its parent's")
    fields.ignore(HARMLESS)
    parent, _ = await found(request)
    run = parent.run
    at = fields.whole("at", 0, len(run.tokens))
    if at is None:
        raise bad(f"at is missing; give the number of tokens to keep, from 0 to {len(run.tokens)}", "at")
    appended = fields.ids("append", _APPENDED, service.model.config.vocab_size) or ()
    most = fields.whole("max_tokens", 1, 2**31 - 1)
    most = run.request.max_new_tokens if most is None else most
    name = fields.text("name", NAME_CHARACTERS)
    begun = concatenate([run.log.cut(at), _given(appended)])
    looping = read_on_repetition(fields) or run.on_repetition or OnRepetition.OFF
    details: dict[str, Any] = {
        "surface": "runs",
        "name": name,
        "parent": run.id,
        "branched_at": at,
        "begun": len(begun),
        "on_repetition": looping,
        "passed_loop": len(begun),
        "family": run.family,
        "cache_salt": run.salt,
    }
    with translated(NAMES):
        changed = replace(
            run.request,
            sampling=resolve_sampling(
                read_sampling(fields, service.model, service.limits), None, asdict(run.request.sampling)
            ),
            max_new_tokens=most,
            stop_on_repetition=looping is OnRepetition.END,
        )
        if len(begun) and Run(changed, tokenizer=service.model.tokenizer).take(begun).finish is not None:
            raise bad(
                "the text ends within the tokens that the branch begins with; keep fewer, or raise max_tokens", "at"
            )
        channel = await service.create(
            changed,
            generation.owner(request),
            details,
            ignore_eos=bool(parent.details.get("ignore_eos")),
            begun=begun,
        )
    stored, _ = await found(request, channel.run.id)
    return JSONResponse(run_object(stored, service.scheduler), 201, fields.notice)


def _given(token_ids: tuple[int, ...]) -> TokenLog:
    """The log of tokens that a person chose."""
    zeros = np.zeros(len(token_ids), np.int32)
    return from_columns(token_ids, zeros + SAMPLED, zeros, zeros, zeros)
