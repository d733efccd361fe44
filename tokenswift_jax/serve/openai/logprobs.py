"""Log-probabilities in the forms of completions and of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenswift_jax.scoring import ScoredText
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.token_log import TokenLogprob

Place = dict[str, dict[str, Any]] | None  # of `of_prompt`: by token id
_LEAST = -9999.0  # JSON has no infinity


def of_completion(
    entries: Sequence[TokenLogprob | None], offsets: Sequence[int], top: int, texts: TokenTexts, ids: Sequence[int]
) -> dict[str, Any]:
    """The object of `/v1/completions`.

    Args:
      entries: one per token; None for the first token of a prompt, which has no probability.
      offsets: index in the text at which each token begins.
      top: likeliest tokens to show; the chosen one is always among those shown.
      texts: the tokens' texts. Two tokens may have the same text; the likelier one is shown.
      ids: the tokens.
    """
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry is None:
            tops.append(None)
            continue
        shown: dict[str, float] = {}
        for token, logprob in [*entry.top[:top], (entry.token_id, entry.logprob)]:
            name = texts.text(token)
            shown[name] = max(shown.get(name, _LEAST), logprob)
        tops.append(shown)
    return {
        "tokens": [texts.text(token) for token in ids],
        "token_logprobs": [None if entry is None else max(entry.logprob, _LEAST) for entry in entries],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }


def of_prompt(text: ScoredText, texts: TokenTexts) -> list[Place]:
    """The log-probabilities of a prompt as vLLM's `prompt_logprobs` has them: a list with an object for each token.

    An object has the prompt's token and the likeliest ones, by id. The first token has none.
    """
    places: list[Place] = [None]
    tops = text.top_ids.tolist(), text.top_logprobs.tolist()
    own = text.token_ids[1:], text.logprobs.tolist(), text.ranks.tolist()
    for token, logprob, rank, ids, values in zip(*own, *tops, strict=True):
        shown = {token: (logprob, rank)}
        for place, (other, value) in enumerate(zip(ids, values, strict=True), 1):
            shown.setdefault(other, (value, place))
        places.append(
            {
                str(each): {"logprob": max(value, _LEAST), "rank": place, "decoded_token": texts.text(each)}
                for each, (value, place) in shown.items()
            }
        )
    return places


def of_chat(entries: Sequence[TokenLogprob], top: int, texts: TokenTexts) -> list[dict[str, Any]]:
    """The entries of `logprobs.content` of `/v1/chat/completions`."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": max(logprob, _LEAST), "bytes": texts.bytes_of(token)}

    return [
        one(entry.token_id, entry.logprob) | {"top_logprobs": [one(*pair) for pair in entry.top[:top]]}
        for entry in entries
    ]
