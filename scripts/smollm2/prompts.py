"""Prompts of the training texts: chat requests made from configs/smollm2_prompts.json, passages of books, empty chats.

Held-out prompts are no part of that file: evaluate with others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARTS = Path(__file__).parents[2] / "configs" / "smollm2_prompts.json"
_SIZES = (60, 100, 160, 240)  # words of a passage


@dataclass(frozen=True)
class Prompt:
    """A prompt of a training text.

    Attributes:
      kind: "chat" with `text` as the user's message, "book" with `text` to be continued, or "user", which has no text:
        the model writes the user's message too.
      text: as `kind` says.
      temperature: of the text.
    """

    kind: str
    text: str
    temperature: float


def prompts(books: Sequence[Path], count: int, seed: int) -> list[Prompt]:
    """`count` prompts in random order: five in eight chat requests, one in eight each of passages to work on, book
    continuations and chats that the model begins itself."""
    draw = random.Random(seed)
    parts = json.loads(PARTS.read_text(encoding="utf-8"))
    topics, requests, code, tasks, passages = (parts[n] for n in ("topics", "requests", "code", "tasks", "passages"))
    words = [path.read_text(encoding="utf-8").split(" ") for path in books]

    def passage(size: int) -> str:
        book = draw.choice(words)
        start = draw.randrange(len(book) - size)
        return " ".join(book[start : start + size]).strip()

    made = []
    for number in range(count):
        kind = number % 8
        temperature = (0.0, 1.0, 0.6, 1.0)[number // 8 % 4]
        if kind < 4:
            made.append(Prompt("chat", draw.choice(requests).format(draw.choice(topics)), temperature))
        elif kind == 4:
            made.append(Prompt("chat", draw.choice(code).format(draw.choice(tasks)), temperature))
        elif kind == 5:
            made.append(Prompt("chat", f"{draw.choice(passages)}\n\n{passage(draw.choice(_SIZES))}", temperature))
        elif kind == 6:
            made.append(Prompt("book", passage(draw.choice(_SIZES)), temperature))
        else:
            made.append(Prompt("user", "", 1.0))
    draw.shuffle(made)
    return made
