"""Text of a growing token sequence, one token at a time."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

_CONTEXT_TOKENS = 8  # kept when the window is cut; an unfinished character has begun at most 3 tokens ago
_WINDOW_TOKENS = 2 * _CONTEXT_TOKENS
_BROKEN = "�"  # what decoders put where bytes are no character (yet)


class Decodes(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    def decode(self, token_ids: list[int], /, **options: bool) -> str | list[str]: ...
    def convert_tokens_to_ids(self, tokens: list[str], /) -> int | list[int]: ...


class Detokenizer:
    """Incremental decoding in the context of the prompt's last tokens.

    Each token costs at most two decodes of a bounded window, whatever came before. Text is given out once its last
    character is whole; bytes that can no longer become a character are given out as U+FFFD. What comes out depends
    on the tokens alone, never on how they were grouped. Special tokens give no text.

    Two kinds of tokenizer have tokens that are no whole characters. Byte-level ones decode every prefix alike, but
    for a last unfinished character. SentencePiece-like ones with byte fallback spoil a whole run of byte tokens for
    one that is missing, so those bytes are put together here.
    """

    def __init__(self, tokenizer: Decodes, prompt_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._byte_of = _byte_tokens(tokenizer)
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._bytes_are_new = False  # whether an unfinished character of byte tokens began after the prompt
        self._window = [int(token) for token in prompt_ids[-_CONTEXT_TOKENS:]]
        text = _decode(tokenizer, self._window)
        self._given = len(text) if self._byte_of else _whole(text)  # characters of the window that are given out
        for token in self._window:
            if token in self._byte_of:
                self._bytes.decode(bytes([self._byte_of[token]]))
            else:
                self._bytes.reset()

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, perhaps none."""
        token = int(token_id)
        if token in self._byte_of:
            # Alone in the window it is all the context that a following word needs.
            self._window, self._bytes_are_new = [token], True
            self._given = len(_decode(self._tokenizer, self._window))
            return self._bytes.decode(bytes([self._byte_of[token]]))
        broken = self._end_bytes()
        self._window.append(token)
        text = _decode(self._tokenizer, self._window)
        whole = max(self._given, _whole(text))
        added, self._given = text[self._given : whole], whole
        if len(self._window) > _WINDOW_TOKENS:
            held = len(text) - self._given
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._given = len(_decode(self._tokenizer, self._window)) - held
        return broken + added

    def flush(self) -> str:
        """The text of what `push` still holds back; call once, at the end."""
        broken = self._end_bytes()
        text = _decode(self._tokenizer, self._window)
        added, self._given = text[self._given :], len(text)
        return broken + added

    def _end_bytes(self) -> str:
        """What is left of byte tokens that no further one will complete."""
        broken = self._bytes.decode(b"", final=True)
        new, self._bytes_are_new = self._bytes_are_new, False
        return broken if new else ""


def _decode(tokenizer: Decodes, token_ids: list[int]) -> str:
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _whole(text: str) -> int:
    """Characters that no further token can change: all but a last one that may lack bytes."""
    return len(text) - text.endswith(_BROKEN)


def _byte_tokens(tokenizer: Decodes) -> dict[int, int]:
    """Byte of each byte-fallback token, by id; empty for a tokenizer without them."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = tokenizer.convert_tokens_to_ids(names)
    letter = ord("A")
    # A tokenizer without byte tokens answers None or its unknown token; one that has the names as text decodes to them.
    if not isinstance(ids, list) or ids[letter] is None or _decode(tokenizer, [ids[letter]]) != chr(letter):
        return {}
    return {token: byte for byte, token in enumerate(ids)}
