"""The inputs of a run that a journal continues, as the journal has them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.engine.journal import headless, recorded_header
from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import expanded
from tokenswift_jax.prompt import encode
from tokenswift_jax.sampling import SamplingConfig


@dataclass(frozen=True)
class PastRun:
    """The inputs that a resumed run takes from its journal.

    Rendering and encoding the same prompt again may give other ids: a chat template may contain today's date, and a
    tokenizer's files or library may have changed.

    Attributes:
      prompt_ids: the prompt's token ids; None: the call has a prompt of its own, which must have the same ids.
      eos_token_ids: tokens that end the text; None: the header does not say.
      sampling, min_new_tokens, stops: as the run had them; None: the header does not say.
    """

    prompt_ids: list[int] | None
    eos_token_ids: tuple[int, ...] | None
    sampling: SamplingConfig | None
    min_new_tokens: int | None
    stops: list[str] | None


def asked_for(prompt: Any, messages: Any) -> str | None:
    """A hash that identifies the text or the conversation of a call; None for token ids and for batches."""
    if isinstance(prompt, str) and messages is None:
        source = ["prompt", prompt]
    elif prompt is None and messages is not None:
        source = ["messages", messages]
    else:
        return None
    return hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode()).hexdigest()


def recorded(path: str | Path, prompt: Any, messages: Any, vocab: int) -> PastRun | None:
    """The inputs of the run in the journal at `path`; None: there is no such run.

    The journal's ids serve a call without a prompt, and one with the same text or conversation as the first.

    Raises:
      UserError: the journal's prompt is no list of token ids of the vocabulary, or the call has no prompt and the file
        no header to take one from.
    """
    header = recorded_header(path)
    if header is None:
        if prompt is None and messages is None and expanded(path).exists():
            raise headless(path)
        return None
    asked, ids = asked_for(prompt, messages), None
    if (prompt is None and messages is None) or (asked is not None and header.get("asked") == asked):
        ids = encode(header.get("prompt_ids"), None, vocab, name="journal's prompt")
    eos, least, stops = _whole(header.get("eos_token_ids")), header.get("min_new_tokens"), header.get("stop")
    return PastRun(
        prompt_ids=ids,
        eos_token_ids=tuple(eos) if eos is not None and max(eos, default=0) < vocab else None,
        sampling=_sampling(header),
        min_new_tokens=least if _whole([least]) else None,
        stops=stops if isinstance(stops, list) and all(isinstance(stop, str) for stop in stops) else None,
    )


def recorded_sampling(path: str | Path) -> dict[str, Any] | None:
    """The fields of `SamplingConfig` of the run in the journal at `path`; None: it does not say."""
    sampling = _sampling(recorded_header(path) or {})
    return None if sampling is None else asdict(sampling)


def _sampling(header: Mapping[str, Any]) -> SamplingConfig | None:
    with contextlib.suppress(TypeError, UserError):
        return SamplingConfig(**header["sampling"]) if "sampling" in header else None
    return None


def _whole(values: Any) -> list[int] | None:
    """A list of whole numbers from 0 on; None for anything else."""
    right = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    return values if right else None
