"""The prompts: passages of given books, or random ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tokenswift_jax as ts
from tokenswift_jax.prompt import read_text


@dataclass(frozen=True)
class Prompts:
    """Passages of one length; round i of a measurement reads passage i (after the last, the first again).

    Attributes:
      source: where they come from, for the row.
      passages: token ids.
    """

    source: str
    passages: tuple[list[int], ...]

    def of_round(self, index: int) -> list[int]:
        """The passage of a round."""
        return self.passages[index % len(self.passages)]

    def first(self, length: int) -> Prompts:
        """The first `length` tokens of every passage."""
        return Prompts(self.source, tuple(passage[:length] for passage in self.passages))

    def only(self, index: int) -> Prompts:
        """The passage of round `index` alone."""
        return Prompts(self.source, (self.of_round(index),))

    def describe(self) -> dict[str, Any]:
        """Fields of a row; the digest tells passages of one book apart."""
        digest = hashlib.sha256(json.dumps(self.passages).encode()).hexdigest()[:16]
        size = {"passages": len(self.passages), "tokens": len(self.passages[0])}
        return {"source": self.source, "digest": digest} | size


def passages_of_files(model: ts.Model, files: list[Path], length: int, count: int) -> Prompts:
    """`count` passages of `length` tokens, the books taken in turn, each book's passages evenly spaced within it.

    Raises:
      UserError: an unreadable file, a folder without *.txt, a checkpoint without a tokenizer, a book that is too short.
    """
    files = [file for path in files for file in _files_of(path)]
    books = [model.encode(read_text(str(file))) for file in files]
    passages = []
    for index in range(count):
        book, file = books[index % len(books)], files[index % len(books)]
        mine = range(index % len(books), count, len(books))
        start = (mine.index(index) + 1) * len(book) // (len(mine) + 1)
        start = min(start, len(book) - length)
        if start < 0:
            raise ts.UserError(f"{file} has {len(book)} tokens; a passage of {length} needs a longer book")
        passages.append(book[start : start + length])
    return Prompts(", ".join(file.name for file in files), tuple(passages))


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ts.UserError(f"the folder {path} has no *.txt")
    return files


def random_ids(model: ts.Model, length: int, count: int, seed: int) -> Prompts:
    """`count` passages of uniformly random token ids: text that no draft can guess."""
    draws = np.random.default_rng(seed).integers(0, model.config.vocab_size, (count, length))
    return Prompts("uniformly random token ids", tuple(draws.tolist()))
