"""An incremental detokenizer: it turns token ids into text, one token at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_CONTEXT_TOKENS = 8  # tokens that a cut window keeps; an unfinished character began at most 3 tokens ago
_WINDOW_TOKENS = 2 * _CONTEXT_TOKENS
BROKEN = "�"  # decoders return it for bytes that are not (yet) a character


class Decodes(Protocol):
    """The methods of a transformers tokenizer that this package calls."""

    def decode(self, token_ids: list[int], /, **options: bool) -> str | list[str]: ...
    def convert_tokens_to_ids(self, tokens: list[str], /) -> int | list[int]: ...


class Detokenizer:
    """Decodes tokens one at a time, in the context of the prompt's last tokens.

    Each token costs at most two decodes of a bounded window, however many tokens came before. The detokenizer releases
    text once its last character is complete; it releases bytes that can no longer become a character as U+FFFD. The
    output depends on the tokens alone, never on how they were grouped. Special tokens give no text.

    Two kinds of tokenizer have tokens that are not whole characters. Byte-level tokenizers decode every prefix alike,
    except for an unfinished last character. SentencePiece-like tokenizers with byte fallback spoil a whole run of byte
    tokens if one is missing, so the detokenizer joins those bytes itself.

    Attributes:
      unfinished: whether it holds bytes back that the next token may complete.
    """

    def __init__(self, tokenizer: Decodes, prompt_ids: Sequence[int] = ()):
        self._decode = _decoder(tokenizer)
        self._byte_of = _byte_tokens(tokenizer, self._decode)
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._bytes_are_new = False  # whether an unfinished character in byte tokens began after the prompt
        self.unfinished = False
        self._window = [int(token) for token in prompt_ids[-_CONTEXT_TOKENS:]]
        text = self._decode(self._window)
        self._given = len(text) if self._byte_of else _whole(text)  # released characters of the window
        for token in self._window:
            if token in self._byte_of:
                self._bytes.decode(bytes([self._byte_of[token]]))
            else:
                self._bytes.reset()

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; it may be empty."""
        token = int(token_id)
        if token in self._byte_of:
            # This token alone gives a following word all the context that it needs.
            self._window, self._bytes_are_new = [token], True
            self._given = len(self._decode(self._window))
            released = self._bytes.decode(bytes([self._byte_of[token]]))
            self.unfinished = bool(self._bytes.getstate()[0])
            return released
        broken = self._end_bytes()
        self._window.append(token)
        text = self._decode(self._window)
        whole = max(self._given, _whole(text))
        added, self._given = text[self._given : whole], whole
        self.unfinished = whole < len(text)
        if len(self._window) > _WINDOW_TOKENS:
            withheld = len(text) - self._given
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._given = len(self._decode(self._window)) - withheld
        return broken + added

    def flush(self) -> str:
        """The text that `push` still holds back; call this once, at the end."""
        broken = self._end_bytes()
        text = self._decode(self._window)
        added, self._given = text[self._given :], len(text)
        return broken + added

    def _end_bytes(self) -> str:
        """The text of an unfinished run of byte tokens, which no further token will complete."""
        broken = self._bytes.decode(b"", final=True)
        new, self._bytes_are_new = self._bytes_are_new, False
        return broken if new else ""


def _decoder(tokenizer: Decodes) -> Callable[[list[int]], str]:
    """The function that decodes tokens and leaves special ones out.

    It calls the `tokenizers` library of a fast tokenizer directly: transformers' `decode` of a list of ints does the
    same and takes 20 us more, once per token of the text.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    own: Any = type(tokenizer)
    if isinstance(tokenizer, Fast) and (own.decode, own._decode) == (Fast.decode, Fast._decode):
        return tokenizer.backend_tokenizer.decode

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    return decode


def _whole(text: str) -> int:
    """Number of characters that no further token can change: all except a last one that may lack bytes."""
    return len(text) - text.endswith(BROKEN)


def _byte_tokens(tokenizer: Decodes, decode: Callable[[list[int]], str]) -> dict[int, int]:
    """The byte of each byte-fallback token, by token id; empty for a tokenizer without such tokens."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = tokenizer.convert_tokens_to_ids(names)
    letter = ord("A")
    # A tokenizer without byte tokens returns None or its unknown token; a tokenizer that has these names as text
    # decodes the ids to the names.
    if not isinstance(ids, list) or ids[letter] is None or decode([ids[letter]]) != chr(letter):
        return {}
    # A vocabulary may lack some bytes; for these the tokenizer returns None or its unknown token.
    absent = (None, getattr(tokenizer, "unk_token_id", None))
    return {token: byte for byte, token in enumerate(ids) if token not in absent}
