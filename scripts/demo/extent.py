"""How long a demo model was trained in all, from the training.json beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Extent:
    """Training summed over everything that led to a checkpoint.

    Attributes:
      backbone_tokens: read while the backbone learnt (and the heads with it).
      head_tokens: read while the heads learnt alone.
      minutes: of training steps; None where some part's are unknown.
      shortest, longest: tokens a row while the backbone learnt; 0 before any training.
    """

    backbone_tokens: int = 0
    head_tokens: int = 0
    minutes: float | None = 0.0
    shortest: int = 0
    longest: int = 0

    def __add__(self, other: Extent) -> Extent:
        minutes = None if self.minutes is None or other.minutes is None else self.minutes + other.minutes
        return Extent(
            self.backbone_tokens + other.backbone_tokens,
            self.head_tokens + other.head_tokens,
            minutes,
            min((length for length in (self.shortest, other.shortest) if length), default=0),
            max(self.longest, other.longest),
        )


def extent(training: Mapping[str, Any]) -> Extent:
    """The extent that a training.json tells.

    The one of the first weights counts tokens by phase name and what came before apart; its phases name a frozen
    backbone instead of what learns.
    """
    if "in_all" in training:
        return Extent(**training["in_all"])
    before = training.get("started_from") or {"tokens_seen": {}, "training_minutes": 0.0}
    seen = Counter(training["tokens_seen"]) + Counter(before["tokens_seen"])
    backbone = [phase for phase in training["phases"] if seen[phase["name"]] and not phase["freeze_backbone"]]
    tokens = sum(seen[phase["name"]] for phase in backbone)
    lengths = [phase["length"] for phase in backbone]
    minutes = training["training_minutes"] + before["training_minutes"]
    return Extent(tokens, seen.total() - tokens, minutes, min(lengths), max(lengths))
