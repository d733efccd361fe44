"""One text to generate: its prompt, how each token is drawn, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenswift_jax.errors import UserError
from tokenswift_jax.sampling import SamplingConfig, check_vocabulary


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
      stop_token_ids: tokens that end the text as a stop string does, and give no text, as in vLLM: special tokens among
        `stops`, and those that a caller named.
      stops_from: no stop ends the text before this many tokens: vLLM's `min_tokens` holds stops back too.
      stop_on_repetition: whether a loop (`RepetitionGuard`) ends the text.
      predicted_ids: token ids of a text that this one may resemble. N-gram drafts come from it too; no token depends on
        it.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingConfig
    max_new_tokens: int
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stops_from: int = 0
    stop_on_repetition: bool = False
    predicted_ids: Sequence[int] = ()


def check_drawable(request: Request, vocab: int) -> None:
    """Checks that the settings together leave a token to draw at every position, from a vocabulary of `vocab` tokens.

    Raises:
      UserError: they do not, or `suppress_tokens` has ids outside the vocabulary.
    """
    check_vocabulary(request.sampling, vocab)
    suppressed = set(request.sampling.suppress_tokens)
    if (
        request.min_new_tokens
        and len(suppressed | {token for token in request.eos_token_ids if token < vocab}) == vocab
    ):
        raise UserError(
            f"suppress_tokens leaves only tokens that end the text, and none of those is drawn before min_new_tokens "
            f"{request.min_new_tokens}; leave another token, or lower min_new_tokens to 0",
            arguments=("suppress_tokens", "min_new_tokens", "min_new_tokens"),
        )


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
