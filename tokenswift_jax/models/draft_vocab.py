"""The draft vocabulary of a checkpoint: the tokens that its draft heads score, chosen when the heads were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tokenswift_jax.errors import UserError


@dataclass(frozen=True, repr=False)
class DraftVocab:
    """The token ids that draft heads score, ascending. Heads never draft another token.

    Drafting reads the LM head once per depth, so fewer columns make an iteration cheaper (Zhao et al. 2025, "FR-Spec").

    Attributes:
      packed: the ids as int32 bytes. Configurations are keys of compiled programs; Python stores the hash of bytes,
        and would compute that of a tuple at each use.
    """

    packed: bytes

    @classmethod
    def of(cls, ids: Sequence[int] | np.ndarray) -> DraftVocab:
        """The vocabulary of some token ids, in any order."""
        return cls(np.sort(np.asarray(ids, np.int32)).tobytes())

    @property
    def ids(self) -> np.ndarray:
        """int32 [draft_vocab], ascending."""
        return np.frombuffer(self.packed, np.int32)

    def __len__(self) -> int:
        return len(self.packed) // np.dtype(np.int32).itemsize

    def __repr__(self) -> str:
        return f"DraftVocab of {len(self)} tokens"

    def places(self, vocab: int) -> np.ndarray:
        """The index of every token id among `ids`, int32 [vocab]; `len(self)` for ids outside the draft vocabulary."""
        places = np.full((vocab,), len(self), np.int32)
        places[self.ids] = np.arange(len(self), dtype=np.int32)
        return places


def parse_draft_vocab(value: Any, vocab: int) -> DraftVocab | None:
    """Parses `tokenswift.draft_vocab` of a config.json: null, or a list of ascending token ids below `vocab`.

    Raises:
      UserError: the value does not have that form.
    """
    if value is None:
        return None
    valid = isinstance(value, list) and value and all(type(token) is int and 0 <= token < vocab for token in value)
    if not valid or any(one >= other for one, other in pairwise(value)):
        raise UserError(
            f"draft_vocab in config.json must be a list of ascending token ids from 0 to {vocab - 1}, or null"
        )
    return DraftVocab.of(value)
