"""The token ids of a prompt that a person gives as text, ids or messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from tokenswift_jax.errors import UserError, warn
from tokenswift_jax.paths import expanded
from tokenswift_jax.progress_report import Report, phase, silent
from tokenswift_jax.text.reading import NotTextError, decode, json_fault

Prompt = str | Sequence[int] | np.ndarray
Message = Mapping[str, Any]
_TEXT_PARTS = ("text", "input_text", "output_text")
TEXT_FIELDS = ("name", "reasoning_content", "thinking", "tool_call_id")  # of a turn, where it has them
_TOKENISING = "tokenising the prompt"
_A_TURN = '{"role": "user", "content": "..."}'


def is_batch(prompt: Any, messages: Any = None) -> bool:
    """Whether `prompt` is a list of prompts, or `messages` a list of conversations.

    A str or a sequence of ints is one prompt; a list of turns is one conversation.
    """
    if messages is not None:
        return _is_list(messages) and len(messages) > 0 and all(map(_is_list, messages))
    return _is_list(prompt) and len(prompt) > 0 and all(isinstance(one, str) or _is_sequence(one) for one in prompt)


def encode_rows(
    prompt: Any, messages: Any, tokenizer: Any, vocab_size: int, report: Report = silent
) -> list[list[int]]:
    """Token ids of each row of a call: those of its prompts, or of its conversations in the tokenizer's chat template.

    To tokenise text is a phase of its own, which `report` receives.

    Raises:
      UserError: neither or both are given; otherwise as `encode` and `encode_chat`.
    """
    if (prompt is None) == (messages is None):
        what = "a prompt is missing" if prompt is None else "prompt and messages exclude each other"
        raise UserError(f"{what}; give one of prompt and messages")
    if messages is not None:
        conversations = messages if is_batch(None, messages) else [messages]
        with phase(report, _TOKENISING):
            return [encode_chat(conversation, tokenizer, vocab_size) for conversation in conversations]
    prompts = prompt if is_batch(prompt) else [prompt]
    if not any(isinstance(one, str) for one in prompts):
        return [encode(one, tokenizer, vocab_size) for one in prompts]
    with phase(report, _TOKENISING):
        return [encode(one, tokenizer, vocab_size) for one in prompts]


def encode(prompt: Any, tokenizer: Any, vocab_size: int, name: str = "prompt") -> list[int]:
    """Token ids of one prompt, text or ids; errors call it by its `name`.

    Text gets the special tokens that the tokenizer itself adds, BOS once.

    Raises:
      UserError: the prompt is empty, is neither text nor ids, has ids outside the vocabulary; text without a tokenizer.
    """
    if not isinstance(prompt, str):
        return _in_vocabulary(_ids(prompt, name), vocab_size, name)
    if tokenizer is None:
        raise UserError(f"this checkpoint has no tokenizer; give the {name} as token ids")
    if not prompt:
        raise UserError(f"the {name} is empty; give at least one character")
    return _in_vocabulary(_tokenised(prompt, tokenizer, name, special_tokens=True), vocab_size, name)


def encode_chat(messages: Any, tokenizer: Any, vocab_size: int) -> list[int]:
    """Token ids of one conversation, up to where the assistant's next turn begins.

    Raises:
      UserError: as `render_chat`; there is no text in it, or the template makes ids outside the vocabulary.
    """
    text = render_chat(messages, tokenizer, next_turn=True)
    if not any(turn.get("content") for turn in turns_of(messages)):
        raise UserError("there is no text in the messages; give at least one character")
    # The tokenizer adds no special tokens: the template writes its own, BOS included.
    ids = _tokenised(text, tokenizer, "conversation", special_tokens=False)
    return _in_vocabulary(ids, vocab_size, "conversation")


def render_chat(messages: Any, tokenizer: Any, *, next_turn: bool, continued: bool = False) -> str:
    """A conversation as the tokenizer's chat template writes it, special tokens included.

    Args:
      messages: turns, as `turns_of` takes them.
      tokenizer: transformers' tokenizer, or None.
      next_turn: whether the text ends with the beginning of an assistant's turn.
      continued: whether the last turn is left open, so that the text can go on in it.

    Raises:
      UserError: wrong shapes, no tokenizer, no template, or a template that refuses the messages.
    """
    turns = turns_of(messages)
    if tokenizer is None:
        raise UserError("messages need a tokenizer, and this checkpoint has none", arguments=("messages",))
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "this checkpoint's tokenizer has no chat template; give text without messages", arguments=("messages",)
        )
    named = tokenizer.chat_template
    if not isinstance(named, str | Mapping):
        raise UserError(f"this checkpoint's chat template is {named!r:.80}, which is not text; correct its files")
    if isinstance(named, Mapping) and "default" not in named:
        raise UserError(f"this checkpoint's chat templates are named {', '.join(named)}; name one of them default")
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=next_turn, continue_final_message=continued
        )
    except Exception as error:  # a template is a program and can raise anything
        message = " ".join(str(error).split())[:200]
        # `raise_exception` in a template raises this class itself; faults of the template are subclasses and others.
        if type(error) is TemplateError:
            raise UserError(f"the chat template refuses the messages ({message})") from None
        raise UserError(
            f"this checkpoint's chat template fails on the messages ({type(error).__name__}: {message}); "
            "leave out the fields that it does not expect, or correct the template"
        ) from None


def turns_of(messages: Any) -> list[dict[str, Any]]:
    """The turns of a conversation as chat templates take them: parts of text are joined, and the role "developer" is
    "system", the older name, which every template knows.

    Args:
      messages: turns, each a dict with "role" and "content", which is text or a list of parts such as
        `{"type": "text", "text": "..."}`; one with "tool_calls" needs no content. Other fields are for the template.

    Raises:
      UserError: wrong shapes, or a part that is not text.
    """
    if not _is_list(messages) or not messages:
        raise UserError(f"messages have to be a list of turns, at least one, such as [{_A_TURN}]")
    turns = []
    for number, turn in enumerate(messages, 1):
        problem = _wrong_turn(turn)
        if problem is not None:
            raise UserError(f"turn {number} of the messages {problem}; a turn is {_A_TURN}")
        known = dict(turn) | {"role": known_role(turn["role"])}
        if _is_list(turn.get("content")):
            known["content"] = "".join(part["text"] for part in turn["content"])
        turns.append(known)
    return turns


def known_role(role: str) -> str:
    """The role's name that chat templates know."""
    return "system" if role == "developer" else role


def wrong_part(parts: Sequence[Any]) -> str | None:
    """The type of the first part of a content that is not text; None if all are."""
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            return kind if isinstance(kind, str) and len(kind) <= 40 else "something else"
    return None


def _wrong_turn(turn: Any) -> str | None:
    """The problem with the shape of one turn; None if there is none."""
    if not isinstance(turn, Mapping):
        return f"is {turn!r:.80}"
    calls = turn.get("tool_calls")
    if calls is not None and not (_is_list(calls) and all(isinstance(call, Mapping) for call in calls)):
        return f'has the "tool_calls" {calls!r:.80}, which is not a list of objects'
    for field in ("role", "content"):
        value = turn.get(field)
        if value is None and field == "content" and calls:
            continue
        if value is None or (field == "content" and value == []):
            return f'has no "{field}"'
        if field == "content" and _is_list(value) and all(isinstance(part, Mapping) for part in value):
            if (kind := wrong_part(value)) is not None:
                return f"has a part of type {kind} without text"
            continue
        if not isinstance(value, str):
            return f'has the "{field}" {value!r:.80}, which is not text'
    for field in TEXT_FIELDS:
        if not isinstance(turn.get(field), str | None):  # a template would write Python's spelling of it
            return f'has the "{field}" {turn[field]!r:.80}, which is not text'
    return None


def read_text(path: str) -> str:
    """The exact text of a prompt file, or of standard input for "-", a final newline included.

    A byte-order mark before it is no part of the text.

    Raises:
      UserError: the file is unreadable, or not UTF-8 text.
    """
    name, data = _read(path)
    try:
        return decode(data)
    except NotTextError as error:
        raise UserError(f"prompt file {name} is {error}; save it as UTF-8 text") from error


def read_ids(path: str) -> list[int]:
    """The token ids of a JSON file, or of standard input for "-", that contains one list of them.

    Raises:
      UserError: the file is unreadable, or contains anything else.
    """
    name, data = _read(path)
    try:
        ids = json.loads(decode(data))
    except NotTextError as error:
        raise UserError(f"prompt file {name} is {error}; save it as UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        why = json_fault(error)
        raise UserError(
            f"prompt file {name} is not JSON ({why}); give one list of token ids such as [1, 2, 3]"
        ) from error
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise UserError(f"prompt file {name} must hold one list of token ids such as [1, 2, 3]")
    return ids


def _read(path: str) -> tuple[str, bytes]:
    """The name of a prompt file for messages, and its bytes."""
    name = "standard input" if path == "-" else path
    try:
        return name, sys.stdin.buffer.read() if path == "-" else expanded(path).read_bytes()
    except OSError as error:
        raise UserError(f"prompt file {name}: {error.strerror}") from error


def _ids(prompt: Any, name: str) -> Sequence[int]:
    """The prompt as token ids; raises UserError if it is not."""
    if isinstance(prompt, np.ndarray) and prompt.ndim == 1 and np.issubdtype(prompt.dtype, np.integer):
        return prompt.tolist()
    if _is_list(prompt):
        if set(map(type, prompt)) <= {int}:  # checks a million ids in milliseconds
            return prompt
        if all(map(_is_id, prompt)):
            return [int(token) for token in prompt]
    raise UserError(f"a {name} is a string or a list of token ids, {_no_ids(prompt)}")


def _no_ids(value: Any) -> str:
    """The fault of a value that should have been token ids."""
    if isinstance(value, np.ndarray):
        return f"not a {value.ndim}-dimensional array of {value.dtype}"
    if _is_list(value):
        return f"and {next(token for token in value if not _is_id(token))!r} is no token id"
    return f"not {type(value).__name__}"


def _tokenised(text: str, tokenizer: Any, name: str, *, special_tokens: bool) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # for example from a command line whose bytes are not UTF-8
        raise UserError(f"the {name} is not UTF-8 text (character {error.start}); convert it first") from None
    ids = tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
    bos, eos = (getattr(tokenizer, kind, None) for kind in ("bos_token_id", "eos_token_id"))
    if (
        special_tokens
        and eos is not None
        and len(ids) > 1
        and ids[-1] == eos
        and not text.endswith(tokenizer.eos_token)
    ):
        warn(f"the tokenizer ends the {name} with its EOS (id {eos}), after which a model begins another text")
    # A tokenizer that adds BOS doubles the one of a text that begins with BOS.
    return ids[1:] if special_tokens and bos is not None and ids[:2] == [bos, bos] else ids


def _in_vocabulary(ids: Sequence[int], vocab_size: int, name: str) -> list[int]:
    if not ids:
        raise UserError(f"the {name} is empty; give at least one token")
    if min(ids) < 0 or max(ids) >= vocab_size:
        outside = next(token for token in ids if not 0 <= token < vocab_size)
        raise UserError(f"token id {outside} of the {name} is outside the vocabulary of 0..{vocab_size - 1}")
    return list(ids)


def _is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _is_sequence(value: Any) -> bool:
    return _is_list(value) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
