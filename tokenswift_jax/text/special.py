"""Special tokens, which decode to no text: as stops they are found by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenswift_jax.errors import UserError


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens that a text leaves out, by name."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: index for index, token in added.items() if token.special}


def stop_token_ids(stops: Sequence[str], tokenizer: Any) -> tuple[int, ...]:
    """The ids of the stops that are special tokens.

    Raises:
      UserError: a stop contains a special token among other characters, so that no text ever contains it.
    """
    special = special_tokens(tokenizer) if stops else {}
    for stop in stops:
        inside = [name for name in special if name in stop]
        if inside and stop not in special:
            raise UserError(
                f"the stop {stop!r} contains {max(inside, key=len)}, a special token, which gives no text; give that "
                "token alone, or the text without it"
            )
    return tuple(special[stop] for stop in stops if stop in special)
