"""From what a person gives to the prompt's token ids."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tokenswift_jax.errors import UserError

Prompt = str | Sequence[int] | np.ndarray


def is_batch(prompt: Any) -> bool:
    """Whether `prompt` is a list of prompts; a str or a sequence of ints is one prompt."""
    if isinstance(prompt, str) or _are_ids(prompt):
        return False
    return isinstance(prompt, list | tuple) and all(isinstance(entry, str) or _is_sequence(entry) for entry in prompt)


def encode(prompt: Any, tokenizer: Any, vocab_size: int, chat: bool = False, name: str = "prompt") -> list[int]:
    """Token ids of one prompt, text or ids; errors call it by its `name`.

    Text gets the special tokens that the tokenizer itself adds, BOS once. With `chat` it becomes the user's turn of
    the tokenizer's chat template, whose own special tokens are the only ones.

    Raises:
      UserError: the prompt is empty, is neither text nor ids, has ids outside the vocabulary; text without a
        tokenizer, `chat` without a template.
    """
    ids = _text_ids(prompt, tokenizer, chat, name) if isinstance(prompt, str) else prompt
    if not _are_ids(ids):
        raise UserError(f"a {name} is a string or a list of token ids, {_no_ids(prompt)}")
    if chat and not isinstance(prompt, str):
        raise UserError("--chat needs a prompt of text, not token ids")
    if len(ids) == 0:
        raise UserError(f"the {name} is empty; give at least one token")
    outside = [int(token) for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise UserError(f"token id {outside[0]} of the {name} is outside the vocabulary of 0..{vocab_size - 1}")
    return [int(token) for token in ids]


def read_text(path: str) -> str:
    """The text of a prompt file, or of standard input for "-"; exactly, a final newline included.

    Raises:
      UserError: unreadable, or not UTF-8 text.
    """
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"prompt file {name}: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {name} is not UTF-8 text (byte {error.start}); convert it first") from error
    if "\0" in text:
        raise UserError(f"prompt file {name} is not text: it has a zero byte at character {text.index(chr(0))}")
    return text


def read_ids(path: str) -> list[int]:
    """The token ids of a JSON file that holds one list of them.

    Raises:
      UserError: unreadable, or anything else in it.
    """
    try:
        ids = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"prompt file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"prompt file {path} is not JSON; give one list of token ids such as [1, 2, 3]") from error
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise UserError(f"prompt file {path} has to hold one list of token ids such as [1, 2, 3]")
    return ids


def _no_ids(value: Any) -> str:
    """What is wrong with what should have been token ids."""
    if isinstance(value, np.ndarray):
        return f"not a {value.ndim}-dimensional array of {value.dtype}"
    if isinstance(value, list | tuple):
        return f"and {next(token for token in value if not _is_id(token))!r} is no token id"
    return f"not {type(value).__name__}"


def _text_ids(text: str, tokenizer: Any, chat: bool, name: str) -> list[int]:
    if tokenizer is None:
        raise UserError(f"this checkpoint has no tokenizer; give the {name} as token ids")
    if not text:
        raise UserError(f"the {name} is empty; give at least one character")
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("this checkpoint's tokenizer has no chat template; leave out --chat")
        turns = [{"role": "user", "content": text}]
        # The template writes its own BOS.
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    # A text that begins with BOS, given to a tokenizer that adds it.
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any] | np.ndarray]:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _are_ids(value: Any) -> TypeGuard[Sequence[int] | np.ndarray]:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    return _is_sequence(value) and all(map(_is_id, value))


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
