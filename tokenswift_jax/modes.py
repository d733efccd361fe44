"""The modes, and the fields of `SpeculationConfig` that each uses: one table for the library, commands and pages."""

from __future__ import annotations

from collections.abc import Iterable

from tokenswift_jax.errors import UserError

_TREE = frozenset({"tree", "node_budget"})
_NGRAM = frozenset({"ngram_k", "ngram_slots"})
_DRAFT_CACHE = frozenset({"draft_cache", "draft_sinks", "draft_block", "refresh_interval", "draft_cache_dtype"})
_MODEL = frozenset({"shared_noise", "draft_weights"})  # of drafts that the model or its heads compute

_USED = {
    "autoregressive": frozenset(),
    "tokenswift": _TREE | _NGRAM | _DRAFT_CACHE | _MODEL | {"schedule"},
    "medusa": _TREE | _MODEL,
    "selfspec": _DRAFT_CACHE | _MODEL,
    "ngram": _NGRAM | {"node_budget"},
    "auto": _TREE | _NGRAM | _DRAFT_CACHE | _MODEL,
}
MODES = tuple(_USED)
SCHEDULES = ("partial", "fused", "auto")
NEED_HEADS = ("tokenswift", "medusa")
"""Modes that a checkpoint without draft heads cannot run."""


def used_fields(mode: str, schedule: str = "auto") -> frozenset[str]:
    """The fields that have an effect in a mode; `fused`, a schedule of `tokenswift`, drafts without a draft cache."""
    return _USED[mode] - (_DRAFT_CACHE if schedule == "fused" else frozenset())


def check_used(given: Iterable[str], mode: str, schedule: str = "auto") -> None:
    """Raises UserError if a person gave values for fields that have no effect in the mode."""
    unused = [name for name in given if name not in {"mode", *used_fields(mode, schedule)}]
    if unused:
        listed = f"has no use for {', '.join(unused)}; leave out one or the other"
        if (mode, schedule) == ("tokenswift", "fused"):
            raise UserError(f"mode {mode} schedule {schedule} {listed}", arguments=("mode", "schedule", *unused))
        raise UserError(f"mode {mode} {listed}", arguments=("mode", *unused))


def is_adaptive(mode: str, schedule: str) -> bool:
    """Whether measurements choose the plan: mode `auto`, or mode `tokenswift` with schedule `auto`."""
    return mode == "auto" or (mode == "tokenswift" and schedule == "auto")
