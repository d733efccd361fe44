"""Requests from the arguments of `generate`: each argument is one value for all prompts, or a list with one each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenswift_jax.errors import UserError, is_whole
from tokenswift_jax.generation_config import MAX_NEW_TOKENS, default_length
from tokenswift_jax.generation_config import ends as checkpoint_ends
from tokenswift_jax.request import Request, check_drawable
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.text.reading import is_utf8
from tokenswift_jax.text.special import stop_token_ids

if TYPE_CHECKING:
    from tokenswift_jax.model import Model
    from tokenswift_jax.sample.logprobs import LogprobSpec


def requests_for(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    max_new_tokens: int | Sequence[int] | None,
    min_new_tokens: int | Sequence[int] | None,
    ignore_eos: bool | Sequence[bool],
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None,
    stop_on_repetition: bool | Sequence[bool],
) -> list[Request]:
    """The requests of a batch; the checkpoint's generation_config.json gives what is None.

    One `SamplingConfig` serves all rows, and row i draws with its `sequence` + i; the entries of a list are used as
    given.

    Raises:
      UserError: a value is out of range, a list does not have one entry per prompt, or the settings leave nothing to
        draw.
    """
    count = len(prompts)
    configs = _configs(model, sampling, count)
    longest = _one_each("max_new_tokens", max_new_tokens, count)
    longest = [_length(model, prompt) if most is None else most for prompt, most in zip(prompts, longest, strict=True)]
    ends = checkpoint_ends(model.generation_config)
    if min_new_tokens is None:
        # A text that `max_new_tokens` ends sooner has no use for the rest.
        shortest = [min(ends.min_new_tokens, most) if is_whole(most, 1) else 0 for most in longest]
    else:
        shortest = _one_each("min_new_tokens", min_new_tokens, count)
    ignored = _one_each("ignore_eos", ignore_eos, count)
    guarded = _one_each("stop_on_repetition", stop_on_repetition, count)
    stops = [ends.stops if model.tokenizer is not None else ()] * count if stop is None else _stops(stop, count)
    requests = []
    for row, prompt in enumerate(prompts):
        check_lengths(longest[row], shortest[row])
        check_flag("ignore_eos", ignored[row])
        check_flag("stop_on_repetition", guarded[row])
        if stops[row] and model.tokenizer is None:
            raise UserError("stop needs text, and this checkpoint has no tokenizer; leave it out", arguments=("stop",))
        eos = () if ignored[row] else tuple(model.eos_token_ids)
        ending = stop_token_ids(stops[row], model.tokenizer)
        request = Request(
            prompt_ids=prompt,
            sampling=configs[row],
            max_new_tokens=int(longest[row]),
            min_new_tokens=int(shortest[row]),
            eos_token_ids=eos,
            stops=stops[row],
            stop_token_ids=ending,
            stop_on_repetition=bool(guarded[row]),
        )
        check_drawable(request, model.config.vocab_size)
        requests.append(request)
    return requests


def logprob_spec(logprobs: Any, mode: Any, vocab: int) -> LogprobSpec | None:
    """The log-probabilities to return; None for none.

    Raises:
      UserError: a value is out of range.
    """
    from tokenswift_jax.sample.logprobs import LogprobSpec

    if mode not in ("raw", "processed"):
        raise UserError(f"logprobs_mode is {mode!r}; it must be 'raw' or 'processed'", arguments=("logprobs_mode",))
    if logprobs is None:
        return None
    if not is_whole(logprobs, 0) or logprobs > vocab:
        raise UserError(f"logprobs is {logprobs!r}; it must be a whole number from 0 to {vocab}", ("logprobs",))
    return LogprobSpec(int(logprobs), mode == "processed")


def check_call(model: Any, speculation: Any, *, capacity: Any, audit: Any, resume: Any, journal: Any) -> None:
    """Checks the types of arguments that no other check reads.

    Raises:
      UserError: one of them has another type.
    """
    from tokenswift_jax.speculation import SpeculationConfig

    check_model(model)
    if not isinstance(speculation, SpeculationConfig):
        raise UserError(f"speculation is {speculation!r:.80}; it must be a SpeculationConfig or None")
    if capacity is not None and not is_whole(capacity, 1):
        raise UserError(f"capacity is {capacity!r}; it must be a whole number, 1 or above", arguments=("capacity",))
    check_flag("audit", audit)
    check_flag("resume", resume)
    if journal is not None and (not isinstance(journal, str | os.PathLike) or not os.fspath(journal)):
        raise UserError(f"journal is {journal!r}; it must be the name of a file", arguments=("journal",))


def check_model(model: Any) -> None:
    """Raises UserError unless `model` is a loaded checkpoint."""
    from tokenswift_jax.model import Model

    if not isinstance(model, Model):
        name = repr(str(model)) if isinstance(model, str | os.PathLike) else "..."
        raise UserError(f"model is {model!r:.80}; it must be a loaded checkpoint, such as load({name})")


def check_flag(name: str, value: Any) -> None:
    """Raises UserError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} is {value!r}; it must be True or False", arguments=(name,))


def _configs(model: Model, sampling: Any, count: int) -> list[SamplingConfig]:
    if sampling is None:
        sampling = resolve_sampling({}, model.generation_config)
    if isinstance(sampling, SamplingConfig):
        return [replace(sampling, sequence=sampling.sequence + row) for row in range(count)]
    configs = _one_each("sampling", sampling, count)
    for config in configs:
        if not isinstance(config, SamplingConfig):
            raise UserError(f"sampling has a {type(config).__name__} where a SamplingConfig is expected")
    return configs


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """The value of every row: a list or tuple has one entry per row, any other value serves all rows."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise UserError(
            f"{name} has {len(value)} entries for {count} prompts; give one each, or one value for all",
            arguments=(name,),
        )
    return list(value)


def _stops(stop: Any, count: int) -> list[tuple[str, ...]]:
    """The stop strings of every row. A list of strings serves all rows; a list of lists has one entry per prompt."""
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Iterable) or isinstance(stop, bytes | Mapping):
        raise UserError(f"stop is {stop!r:.80}; it must be a string or a list of strings", arguments=("stop",))
    entries = list(stop)
    if entries and all(isinstance(entry, list | tuple) for entry in entries):
        rows = [tuple(entry) for entry in _one_each("stop", entries, count)]
    else:
        rows = [tuple(entries)] * count
    if not all(isinstance(one, str) and one for row in rows for one in row):
        raise UserError("a stop string is text of at least one character")
    for one in {one for row in rows for one in row}:
        if not is_utf8(one):  # for example from a command line whose bytes are not UTF-8
            raise UserError(f"the stop {one!r} is not UTF-8 text, so no text contains it; convert it first")
    return rows


def _length(model: Model, prompt: Sequence[int]) -> int:
    """The most tokens to generate where the caller does not say, but no more than fit."""
    room = model.config.max_position_embeddings - len(prompt)
    return default_length(model.generation_config, len(prompt), room) or max(1, min(MAX_NEW_TOKENS, room))


def check_lengths(max_new_tokens: Any, min_new_tokens: Any) -> None:
    """Raises UserError unless both are whole numbers of tokens, the least not above the most."""
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("min_new_tokens", min_new_tokens, 0)):
        if not is_whole(value, least):
            raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or above", arguments=(name,))
    if min_new_tokens > max_new_tokens:
        raise UserError(
            f"min_new_tokens {min_new_tokens} is above max_new_tokens {max_new_tokens}; lower one",
            arguments=("min_new_tokens", "max_new_tokens"),
        )
