"""The description of a run in the folder of runs: what its journal does not say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.errors import writing
from tokenswift_jax.serve.run import RunState

ACTIVE = "active"  # the state of a run that has neither ended nor paused
_FILE = "run.json"
_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")
_STATES = {ACTIVE, *(state.value for state in RunState if state.ended or state is RunState.PAUSED)}


@dataclass(frozen=True)
class Description:
    """The content of a file `run.json`, whose folder has the run's id as its name.

    Attributes:
      id: the id.
      owner: who asked: a hash of the key.
      created: seconds since 1970.
      background: whether the run goes on without a connection.
      max_new_tokens: its limit.
      stop_token_ids, stops_from: its stop tokens, and the tokens before which no stop counts.
      state: "active", "paused" or the name of an end.
      tokens, prompt_tokens: its tokens so far, and those of its prompt.
      cached: tokens of the prompt whose K/V came from an earlier text.
      finish, error: why it ended, and why it failed.
      details: fields of the surface that made it, JSON values.
    """

    id: str
    owner: str
    created: float
    background: bool
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    stops_from: int
    state: str
    tokens: int
    prompt_tokens: int
    cached: int
    finish: str | None
    error: str | None
    details: dict[str, Any]

    @property
    def surface(self) -> str | None:
        """The surface that made the run."""
        return self.details.get("surface")

    def write(self, folder: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
          WriteError: the system refuses.
        """
        target = folder / _FILE
        beside = target.with_suffix(".new")
        with writing(target):
            with beside.open("w", encoding="utf-8") as file:
                json.dump(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)


def is_id(name: str) -> bool:
    """Whether a name is one that the server gives to runs."""
    return _ID.fullmatch(name) is not None


def is_described(folder: Path) -> bool:
    """Whether a run's folder has a description, damaged or not."""
    return (folder / _FILE).exists()


def read_description(folder: Path) -> Description | None:
    """The description in a run's folder; None if there is none, or if no server has written it as it is.

    Other programs may leave anything among the runs. Without these checks, one such file keeps a restarted server from
    going on with all runs, and makes every list of runs an error.
    """
    if not is_id(folder.name):
        return None
    try:
        kept = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        kept = {**_LATER, **kept, "stop_token_ids": tuple(kept["stop_token_ids"])}
        if kept.keys() != _FIELDS.keys() or kept["id"] != folder.name:
            return None
        json.dumps(kept, ensure_ascii=False).encode()  # half a surrogate pair could not be sent to anybody
        return Description(**kept) if all(fits(kept[name]) for name, fits in _FIELDS.items()) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _are_details(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    texts = ("surface", "name", "parent", "on_repetition", "cache_salt", "family")
    counts = ("branched_at", "begun", "passed_loop")
    return all(_is_text_or_none(value.get(name)) for name in texts) and all(
        _is_count(value[name]) for name in counts if value.get(name) is not None
    )


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "id": _is_text,
    "owner": _is_text,
    "created": _is_time,
    "background": lambda value: isinstance(value, bool),
    "max_new_tokens": lambda value: _is_count(value) and value > 0,
    "stop_token_ids": lambda value: all(map(_is_count, value)),
    "stops_from": _is_count,
    "state": lambda value: value in _STATES,
    "tokens": _is_count,
    "prompt_tokens": _is_count,
    "cached": _is_count,
    "finish": _is_text_or_none,
    "error": _is_text_or_none,
    "details": _are_details,
}
_LATER = {"stops_from": 0, "cached": 0}  # descriptions of earlier versions lack these
