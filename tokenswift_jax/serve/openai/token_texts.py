"""Single tokens as text and as bytes, for log-probabilities."""

from __future__ import annotations

import functools
from typing import Any

_BROKEN = "�"


class TokenTexts:
    """The text and the bytes of single tokens.

    A token may be part of a character; its text then has U+FFFD, as OpenAI's has, and its bytes are exact for
    byte-level tokenizers and for byte tokens.
    """

    def __init__(self, tokenizer: Any, *, as_ids: bool = False) -> None:
        """`as_ids`: the text of token 17 is "token_id:17" (vLLM's `return_tokens_as_token_ids`)."""
        self._tokenizer, self._as_ids = tokenizer, as_ids or tokenizer is None

    def text(self, token: int) -> str:
        """The token as text."""
        return f"token_id:{token}" if self._as_ids else _decoded(self._tokenizer, token)

    def bytes_of(self, token: int) -> list[int] | None:
        """The token's bytes; None where there is no tokenizer."""
        if self._tokenizer is None:
            return None
        text = _decoded(self._tokenizer, token)
        if _BROKEN in text:
            name = self._tokenizer.convert_ids_to_tokens(token)
            if len(name) == 6 and name.startswith("<0x"):
                return [int(name[3:5], 16)]
            if all(letter in _byte_letters() for letter in name):
                return [_byte_letters()[letter] for letter in name]
        return list(text.encode("utf-8"))


def _decoded(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The byte of each letter with which byte-level tokenizers name tokens (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
