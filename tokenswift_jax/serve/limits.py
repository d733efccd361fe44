"""The limits of a server, each named in the refusal that it causes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
      body_bytes: bytes of a body.
      body_seconds: seconds in which a body must arrive.
      prompt_bytes: bytes of a prompt's text, checked before it is tokenised.
      prompts: prompts of one request.
      choices: texts for one prompt (`n`).
      runs: texts of one request, prompts times `n`.
      stops: stop strings.
      stop_characters: characters of a stop string.
      ids: entries of a list of token ids that is no prompt.
      logprobs: likeliest tokens at each place.
      metadata: pairs of the field `metadata`, as OpenAI has it.
      salt: characters of `cache_salt`.
    """

    body_bytes: int = 32 * 2**20
    body_seconds: float = 60.0
    prompt_bytes: int = 8 * 2**20
    prompts: int = 128
    choices: int = 16
    runs: int = 128
    stops: int = 16
    stop_characters: int = 256
    ids: int = 4096
    logprobs: int = 20
    metadata: int = 16
    salt: int = 256
