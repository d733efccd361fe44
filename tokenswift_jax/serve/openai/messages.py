"""Messages of a chat as this server's templates take them."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.prompt import TEXT_FIELDS, known_role, wrong_part
from tokenswift_jax.serve.openai.errors import bad

_ROLES = ("system", "developer", "user", "assistant")


def read_messages(value: Any, param: str = "messages") -> list[dict[str, str]]:
    """The turns, each with a role and text, and with the other fields of text that templates read.

    The parts of a message are joined. The role "developer" is "system": templates know the older name.

    Raises:
      ApiError: a turn has a wrong shape, or something that is not text: tools, images, files, audio.
    """
    if not isinstance(value, list) or not value:
        raise bad(f'{param} must be a list of turns, such as [{{"role": "user", "content": "..."}}]', param)
    return [_turn(turn, f"{param}[{number}]", param) for number, turn in enumerate(value)]


def _turn(turn: Any, place: str, param: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise bad(f"{place} must be an object with role and content", param)
    role = turn.get("role")
    if role in ("tool", "function") or turn.get("tool_calls") or turn.get("function_call"):
        raise bad(f"{place}: tools are not supported by this server", param, "unsupported_field")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise bad(f"{place} has a role that is not known; known: {known}", param)
    others = {name: turn[name] for name in TEXT_FIELDS if turn.get(name) is not None}
    for name, value in others.items():
        if not isinstance(value, str):
            raise bad(f"{place} has a {name} that is not text", param)
    return {"role": known_role(role), "content": text_of(turn.get("content"), place, param)} | others


def text_of(content: Any, place: str, param: str) -> str:
    """The text of a content: its own, or that of its parts.

    Raises:
      ApiError: there is none, or a part is not text; the message calls it `place`.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad(f"{place} has no content; give text", param)
    if (kind := wrong_part(content)) is not None:
        raise bad(f"{place} has a part of type {kind}; this server reads text alone", param, "unsupported_field")
    return "".join(part["text"] for part in content)
