"""Texts with the backbone's hidden states over them: a frozen backbone gives the same states in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class States:
    """Texts and the backbone's states over them.

    Attributes:
      tokens: int32 [tokens].
      hidden: bfloat16 [tokens, hidden_size], the last layer's output before the final norm; zero at the last token of
        a text.
      offsets: int64 [texts + 1], the first token of each text.
    """

    tokens: np.ndarray
    hidden: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> States:
        """The texts, each as tokens and states."""
        tokens, hidden = zip(*texts, strict=True)
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        return cls(np.concatenate(tokens), np.concatenate(hidden), offsets)

    def save(self, path: Path) -> None:
        """Writes a file, whole or not at all."""
        draft = path.with_suffix(".part")
        with draft.open("wb") as file:
            # NumPy stores no bfloat16.
            np.savez(file, tokens=self.tokens, hidden=self.hidden.view(np.uint16), offsets=self.offsets)
        draft.rename(path)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> States:
        """The texts of several files as one."""
        parts = [np.load(path) for path in paths]
        sizes = np.cumsum([0, *(len(part["tokens"]) for part in parts)])
        offsets = [part["offsets"][:-1] + size for part, size in zip(parts, sizes[:-1], strict=True)]
        return cls(
            np.concatenate([part["tokens"] for part in parts]),
            np.concatenate([part["hidden"].view(ml_dtypes.bfloat16) for part in parts]),
            np.concatenate([*offsets, sizes[-1:]]),
        )

    def runs(self, length: int, ahead: int, draw: np.random.Generator) -> np.ndarray:
        """First positions of runs of `length` positions in random order, int64 [runs]; each run has `ahead` more
        positions with states and a token behind them in its text. The runs of a text begin at a random place."""
        starts = []
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            room = int(end - begin) - 1 - length - ahead
            if room >= 0:
                starts.append(np.arange(begin + draw.integers(min(length, room + 1)), begin + room + 1, length))
        return draw.permutation(np.concatenate(starts))
