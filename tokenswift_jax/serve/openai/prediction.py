"""Predicted outputs: the field `prediction`, and the part of it that became text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import encode
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import bad
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.messages import text_of
from tokenswift_jax.token_log import SAMPLED

if TYPE_CHECKING:
    from tokenswift_jax.serve.openai.generation import Choice
    from tokenswift_jax.serve.service import Service

_GRAM = 3  # tokens in a row that two texts must share: two occur in unrelated texts too


async def predicted(fields: Fields, service: Service) -> list[int] | None:
    """As `read_prediction`, beside the event loop if there is a text to read."""
    if fields.get("prediction") is None:
        return None
    return await service.work(read_prediction, fields, service)


def read_prediction(fields: Fields, service: Service) -> list[int] | None:
    """The token ids of the field `prediction`; None where it is absent.

    A server that drafts no n-grams names the field among those without effect.

    Raises:
      ApiError: it has another form than OpenAI's, or is longer than any text here.
    """
    asked = fields.inside("prediction")
    if asked is None or not asked.body:
        return None
    kind, content, model = asked.text("type"), asked.get("content"), service.model
    if kind != "content":
        raise bad('prediction must be {"type": "content", "content": ...}', "prediction")
    text = content if isinstance(content, str) else text_of(content, "prediction", "prediction")
    generation.check_prompt_bytes(text, service, "prediction")
    if model.tokenizer is None:
        raise bad("prediction needs text, and this checkpoint has no tokenizer; leave it out", "prediction")
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    try:
        ids = encode(ids, None, model.config.vocab_size) if ids else []
    except UserError as error:
        raise bad(str(error), "prediction") from None
    if len(ids) > service.max_length:
        most = service.max_length
        raise bad(f"prediction has {len(ids)} tokens; the longest text that this server holds has {most}", "prediction")
    if not service.drafts_ngrams:
        fields.without_effect("prediction")
    return ids


def prediction_tokens(prediction: Sequence[int], choices: Sequence[Choice]) -> dict[str, int]:
    """OpenAI's counts of a prediction, over all choices.

    Accepted are tokens of a text that were accepted as drafts and that the prediction has, rejected are tokens of the
    prediction that a text lacks. A text has a token of the other if both share it and two tokens beside it.
    """
    accepted = rejected = 0
    predicted = set(_grams(prediction))
    for choice in choices:
        drafted = np.asarray(choice.sources, np.int32) != SAMPLED
        accepted += int((_shared(choice.token_ids, predicted) & drafted).sum())
        rejected += int((~_shared(prediction, set(_grams(choice.token_ids)))).sum())
    return {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}


def _shared(tokens: Sequence[int], known: set[tuple[int, ...]]) -> np.ndarray:
    """For each token, whether it is part of a few in a row that are known."""
    found = np.zeros(len(tokens), bool)
    for place, gram in enumerate(_grams(tokens)):
        if gram in known:
            found[place : place + _GRAM] = True
    return found


def _grams(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[place:] for place in range(_GRAM)), strict=False))
