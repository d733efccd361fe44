"""The header of a journal: everything that a text depends on, but not its length, which a later run may raise."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenswift_jax.request import Request

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def journal_header(model: Model, request: Request, *, ignore_eos: bool, fingerprint: str) -> dict[str, Any]:
    """The header of the journal of a request.

    Args:
      model: the target.
      request: the request.
      ignore_eos: whether EOS tokens do not end the text.
      fingerprint: `checkpoint.known_fingerprint` of the model's folder.
    """
    return {
        "checkpoint": fingerprint,
        "dtype": model.dtype,
        "rope_override": model.rope_override,
        "eos_token_ids": model.eos_token_ids,
        "prompt_ids": list(request.prompt_ids),
        "sampling": asdict(request.sampling),
        "min_new_tokens": request.min_new_tokens,
        "ignore_eos": ignore_eos,
        "stop": request.stops,
    }
