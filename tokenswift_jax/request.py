"""One text to generate: its prompt, how each token is drawn, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenswift_jax.sampling import SamplingConfig


@dataclass(frozen=True)
class Request:
    """The request for one row of a batch; rows share nothing but the model.

    Attributes:
      prompt_ids: the prompt's token ids, at least one.
      sampling: how tokens are drawn; its `sequence` is the row's own.
      max_new_tokens: the most tokens to generate, an EOS included.
      min_new_tokens: no EOS is drawn before this many tokens.
      eos_token_ids: tokens that end the text; empty where EOS is ignored, and then `min_new_tokens` has no effect.
      stops: strings that end the text.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingConfig
    max_new_tokens: int
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()


def batch_of(
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    eos_token_ids: tuple[int, ...] = (),
    stops: tuple[str, ...] = (),
) -> list[Request]:
    """Requests that share their settings; request i draws with `sampling.sequence` + i."""
    return [
        Request(
            prompt_ids=prompt,
            sampling=replace(sampling, sequence=sampling.sequence + index),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            eos_token_ids=eos_token_ids,
            stops=stops,
        )
        for index, prompt in enumerate(prompts)
    ]
