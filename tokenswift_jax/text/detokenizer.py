"""Text of a growing token sequence, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_PROMPT_TOKENS = 8  # how much of the prompt is context; a character is at most 4 bytes, so one of 5 starts is a border
_CONTEXT_TOKENS = 16  # context grows only while it decodes to nothing (special tokens)
_CHARACTER_BYTES = 4  # of UTF-8; a token that gives text gives a byte or more
_BROKEN = "�"  # what decoders put where bytes are no character (yet)


class Decodes(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    def decode(self, token_ids: list[int], /, **options: bool) -> str | list[str]: ...


class Detokenizer:
    """Incremental decoding in the context of the prompt's last tokens.

    Each token costs at most three decodes of a bounded window, whatever came before. Text is given out once its
    last character is whole; bytes that can no longer become a character are given out as U+FFFD. What comes out
    depends on the tokens alone, never on how they were grouped. Special tokens give no text.
    """

    def __init__(self, tokenizer: Decodes, prompt_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._context = self._prompt_context([int(token) for token in prompt_ids[-_PROMPT_TOKENS:]])
        self._base = self._decode(self._context)
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, perhaps none."""
        self._pending.append(int(token_id))
        text = self._decode(self._context + self._pending)
        if not text.endswith(_BROKEN):
            return self._settle(len(self._pending), text)
        if len(self._pending) < _CHARACTER_BYTES:
            return ""
        # Whatever character the oldest token begins would be whole by now.
        return self._settle(1, self._decode(self._context + self._pending[:1]))

    def flush(self) -> str:
        """The text of what `push` still holds back; call once, at the end."""
        if not self._pending:
            return ""
        return self._settle(len(self._pending), self._decode(self._context + self._pending))

    def _settle(self, count: int, text: str) -> str:
        settled, self._pending = self._pending[:count], self._pending[count:]
        context = settled  # the newest group begins on a border between characters: all the context the next one needs
        if text.startswith(self._base):
            added = text[len(self._base) :]
        elif text.startswith(stem := self._base.rstrip(_BROKEN)):
            added = text[len(stem) :]  # a character that the context had begun: no border lies between them
            context = self._context + settled
        else:
            added = self._decode(settled)  # a byte-fallback decoder spoils a whole run of bytes for one bad one
        base = self._decode(context)
        if not added or not base:  # no text of its own to stand on
            context = (self._context + settled)[-_CONTEXT_TOKENS:]
            base = self._decode(context)
        self._context, self._base = context, base
        return added

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _prompt_context(self, tail: list[int]) -> list[int]:
        for start in range(min(_CHARACTER_BYTES, len(tail))):
            if not self._decode(tail[start:]).startswith(_BROKEN):
                return tail[start:]
        return tail
