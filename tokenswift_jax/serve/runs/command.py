"""The command that writes the text of a run again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.generation_config import ends
from tokenswift_jax.model import DEMO_MODEL, Model
from tokenswift_jax.parallel.mesh import spec_of
from tokenswift_jax.prompt import encode
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.serve.run import OnRepetition, Run
from tokenswift_jax.serve.run_store import StoredRun
from tokenswift_jax.serve.runs.endpoints import found
from tokenswift_jax.serve.service import Service
from tokenswift_jax.text.special import stop_token_ids

_PROGRAM = "python -m tokenswift_jax.generate"
_OFF = {"top_k": 0, "top_p": 1, "min_p": 0, "eta_cutoff": 0}  # the values of flags that switch a filter off
_LONGEST_ARGUMENT = 100_000  # bytes; Linux takes 128 KiB


class NoCommandError(Exception):
    """No command gives the text; the message says why."""


async def command(request: HttpRequest) -> Response:
    """The command for a shell, or null and the reason; the prompt as text."""
    service: Service = request.app.state.service
    stored, _ = await found(request)
    prompt = await service.work(_prompt_text, stored.run, service.model)
    try:
        line, note = await service.work(command_of, stored, service.model), None
    except NoCommandError as error:
        line, note = None, str(error)
    return JSONResponse({"object": "run.command", "command": line, "note": note, "prompt": prompt})


def command_of(stored: StoredRun, model: Model) -> str:
    """The command for the text of a run.

    Raises:
      NoCommandError: no flags give it.
    """
    run, request = stored.run, stored.run.request
    if stored.details.get("branched_at") is not None and stored.details.get("begun") != 0:
        raise NoCommandError("a branch begins with tokens of another run; its .jsonl file has all of them")
    defaults = ends(model.generation_config)
    special = stop_token_ids(request.stops, model.tokenizer)
    if set(request.stop_token_ids) != set(special):
        raise NoCommandError("stop_token_ids has no flag")
    if request.stops_from and request.stops:
        raise NoCommandError("no flag lets stop strings wait for min_tokens")
    if defaults.stops and not request.stops:
        raise NoCommandError("no flag switches the checkpoint's own stop strings off")
    words = [] if model.path.resolve() == DEMO_MODEL.resolve() else ["--model", str(model.path)]
    words += ["--dtype", model.dtype]
    if model.rope_override:
        words += ["--rope-override", json.dumps(model.rope_override)]
    if model.mesh is not None:
        words += ["--mesh", str(spec_of(model.mesh))]
    words += ["--max-new-tokens", str(request.max_new_tokens), "--min-new-tokens", str(request.min_new_tokens)]
    words += ["--ignore-eos"] if stored.details.get("ignore_eos") else []
    words += [word for stop in request.stops if request.stops != defaults.stops for word in ("--stop", stop)]
    words += ["--stop-on-repetition"] if run.on_repetition is OnRepetition.END else []
    words += _sampling(request.sampling, model)
    prompt = _prompt_text(run, model)
    if prompt is not None and len(prompt.encode()) < _LONGEST_ARGUMENT and _encodes(prompt, run, model):
        return f"{_PROGRAM} {shlex.join([*words, f'--prompt={prompt}'])}"
    ids = json.dumps(list(request.prompt_ids))
    return f"{_PROGRAM} {shlex.join([*words, '--prompt-ids', '-'])} <<< '{ids}'"


def _sampling(sampling: SamplingConfig, model: Model) -> list[str]:
    if sampling.sequence:
        raise NoCommandError("sequence has no flag")
    given: dict[str, Any] = {"temperature": sampling.temperature, "seed": sampling.seed}
    usual = resolve_sampling(given, model.generation_config)
    for name in ("top_k", "top_p", "min_p", "eta_cutoff", "repetition_penalty", "penalty_window", "min_tokens_to_keep"):
        value = getattr(sampling, name)
        if value != getattr(usual, name):
            given[name] = _OFF.get(name) if value is None else value
    if sampling.suppress_tokens != usual.suppress_tokens:
        given["suppress_tokens"] = sampling.suppress_tokens
    if None in given.values() or given.get("suppress_tokens") == ():
        raise NoCommandError("no flag switches a setting of the checkpoint off")
    if _plain(resolve_sampling(given, model.generation_config)) != _plain(sampling):
        raise NoCommandError("no flags give these settings")
    words = []
    for name, value in given.items():
        shown = ",".join(map(str, value)) if name == "suppress_tokens" else repr(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return words


def _plain(sampling: SamplingConfig) -> SamplingConfig:
    """The settings with filters that keep every token switched off."""
    return replace(
        sampling,
        top_p=None if sampling.top_p == 1 else sampling.top_p,
        min_p=sampling.min_p or None,
    )


def _prompt_text(run: Run, model: Model) -> str | None:
    if model.tokenizer is None:
        return None
    return model.tokenizer.decode(list(run.request.prompt_ids), skip_special_tokens=True)


def _encodes(prompt: str, run: Run, model: Model) -> bool:
    """Whether the text gives the run's prompt again."""
    try:
        return encode(prompt, model.tokenizer, model.config.vocab_size) == list(run.request.prompt_ids)
    except UserError:
        return False
