"""The objects of the runs surface: a run, and its events."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from tokenswift_jax.serve.description import Description
from tokenswift_jax.serve.run import Run, RunState, Update
from tokenswift_jax.serve.run_store import StoredRun
from tokenswift_jax.serve.scheduler import Scheduler
from tokenswift_jax.token_log import TokenLog

_NEWEST = 64  # chunks that a run's pace is measured on


def run_object(stored: StoredRun, scheduler: Scheduler) -> dict[str, Any]:
    """A run for a person: its state, its place in the queue, its progress, its settings, its parent."""
    run, details = stored.run, stored.details
    request = run.request
    waiting = run.state is RunState.QUEUED
    return {
        "id": run.id,
        "object": "run",
        "created": int(run.created),
        "name": details.get("name"),
        "state": run.state.value,
        "position": scheduler.position(run) if waiting else None,
        "wait_seconds": scheduler.wait_seconds(run) if waiting else None,
        "prompt_tokens": len(request.prompt_ids),
        "tokens": len(run.tokens),
        "max_tokens": request.max_new_tokens,
        "tokens_per_second": pace(run),
        "finish_reason": run.finish,
        "error": run.error,
        "parent": details.get("parent"),
        "branched_at": details.get("branched_at"),
        "loops": [asdict(loop) for loop in run.loops],
        "settings": {
            **asdict(request.sampling),
            "min_tokens": request.min_new_tokens,
            "ignore_eos": bool(details.get("ignore_eos")),
            "stop": list(request.stops),
            "stop_token_ids": list(request.stop_token_ids),
            "on_repetition": run.on_repetition,
        },
    }


def pace(run: Run) -> float | None:
    """Tokens a second of the newest chunks; None where their time is unknown."""
    newest = run.row.parts[-_NEWEST:]
    seconds = sum(float(part.seconds.sum()) for part in newest)
    return sum(map(len, newest)) / seconds if seconds > 0 else None


def summary(description: Description) -> dict[str, Any]:
    """A run of a list, from its description in the folder."""
    return {
        "id": description.id,
        "object": "run",
        "created": int(description.created),
        "name": description.details.get("name"),
        "state": description.state,
        "prompt_tokens": description.prompt_tokens,
        "tokens": description.tokens,
        "max_tokens": description.max_new_tokens,
        "finish_reason": description.finish,
        "parent": description.details.get("parent"),
        "branched_at": description.details.get("branched_at"),
    }


def iterations(log: TokenLog) -> list[list[int]]:
    """Tokens and offered depth of each iteration of a chunk; the token of a prefill counts as an
    iteration that was offered nothing."""
    starts = np.flatnonzero(log.offsets <= 0)
    lengths = np.diff(np.append(starts, len(log)))
    offered = np.where(log.offsets[starts] == 0, log.offered[starts], 0)
    return [list(pair) for pair in zip(lengths.tolist(), offered.tolist(), strict=True)]


def event_of(update: Update, tokens: int, offset: int) -> dict[str, Any]:
    """The data of one event.

    Args:
      update: the update.
      tokens, offset: tokens and characters of the text before it. A reader cuts its text at `offset` first: a text that
        goes on after its limit may have ended in half a character.
    """
    return {
        "tokens_before": tokens,
        "offset": offset,
        "token_ids": update.log.token_ids.tolist(),
        "sources": update.log.sources.tolist(),
        "widths": list(update.widths),
        "iterations": iterations(update.log),
        "loops": [asdict(loop) for loop in update.loops],
        "segments": [list(segment) for segment in update.segments],
        "text": update.text,
        "seconds": float(update.log.seconds.sum()),
        "state": update.state.value,
        "finish_reason": update.finish,
        "error": update.error,
    }


class Places:
    """Counts tokens and characters from update to update."""

    def __init__(self) -> None:
        self._tokens, self._characters = 0, 0

    def event(self, update: Update) -> dict[str, Any]:
        """The data of the next update's event."""
        event = event_of(update, self._tokens, self._characters)
        self._tokens += len(update.log)
        self._characters += len(update.text)
        return event
