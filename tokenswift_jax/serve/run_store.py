"""The folder of runs: a journal and a description for each, from which a restarted server goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenswift_jax import checkpoint
from tokenswift_jax.engine.journal import Journal, recorded_header
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.journal_header import journal_header
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.run import OnRepetition, Run, RunState, Update, restored
from tokenswift_jax.token_log import TokenLog

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")
_RECORD = 1024  # tokens of a record of a branch's first tokens: an event of 100K would stall a page
_JOURNAL, _DESCRIPTION = "journal", "run.json"


@dataclass
class StoredRun:
    """A run with what the folder knows about it.

    Attributes:
      run: the run.
      background: whether it goes on without a connection.
      details: fields of the surface that made it, JSON values.
      updates: the updates that its journal describes, when it was read from the folder.
    """

    run: Run
    background: bool
    details: dict[str, Any]
    updates: list[Update] = field(default_factory=list)

    def pass_loop(self) -> None:
        """Notes that the run goes on though it has paused at a loop here; `save` stores that."""
        self.details["passed_loop"] = len(self.run.tokens)


class RunStore:
    """A folder with mode 0700; each run has a folder of its own there, named by an id that the server made.

    Attributes:
      folder: the folder.
      fingerprint: the hash of the target, which every journal has.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        """Makes the folder.

        Raises:
          UserError: it cannot be made or written.
        """
        self.folder, self._model = folder, model
        self._saving = threading.Lock()
        self.fingerprint = checkpoint.target_fingerprint(model.path)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as error:
            raise UserError(
                f"state_dir {folder} cannot be used: {error.strerror}; name another", ("state_dir",)
            ) from None

    def create(self, stored: StoredRun, *, ignore_eos: bool, begun: TokenLog | None = None) -> None:
        """Begins the journal of a new run and writes its description; both are on disk when this returns.

        `begun` are the tokens of a branch, which the run has from the start.

        Raises:
          WriteError: the system refuses.
        """
        run = stored.run
        with writing(self.folder):
            self._of(run.id).mkdir(mode=0o700)
        stored.details["ignore_eos"] = ignore_eos
        try:
            run.journal = journal = self._journal(run, ignore_eos)
            self.save(stored)
            journal.begin()
            if begun is not None and len(begun):
                for start in range(0, len(begun), _RECORD):
                    update = run.add(begun.part(start, start + _RECORD))
                    journal.append(update.log, [])
                    stored.updates.append(update)
        except BaseException:
            self.delete(run)
            raise

    def reopen(self, stored: StoredRun, max_new_tokens: int) -> None:
        """Gives a run that has ended or paused a larger limit; the next `load` finds it ready to go on.

        Raises:
          WriteError: the system refuses.
        """
        run = stored.run
        if run.journal is not None:
            run.journal.close()
            run.journal = None
        run.request = replace(run.request, max_new_tokens=max_new_tokens)
        stored.pass_loop()
        run.state, run.finish, run.error = RunState.QUEUED, None, None
        self.save(stored)

    def listed(self, owner: str) -> list[dict[str, Any]]:
        """The descriptions of the runs of an owner, the newest first."""
        found = []
        for place in self.folder.iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                description = _described(place)
                if description["owner"] == owner:
                    found.append((description["created"], description["id"], description))
        return [description for _, _, description in sorted(found, key=lambda entry: entry[:2], reverse=True)]

    def save(self, stored: StoredRun) -> None:
        """Writes the description of a run, whole or not at all.

        Raises:
          WriteError: the system refuses.
        """
        with self._saving:  # the scheduler's thread and a request may save at once; the later one has the newer state
            self._save(stored)

    def _save(self, stored: StoredRun) -> None:
        run = stored.run
        paused = run.state is RunState.PAUSED
        description = {
            "id": run.id,
            "owner": run.owner,
            "created": run.created,
            "background": stored.background,
            "max_new_tokens": run.request.max_new_tokens,
            "stop_token_ids": list(run.request.stop_token_ids),
            "stops_from": run.request.stops_from,
            "state": run.state.value if run.state.ended or paused else "active",
            "tokens": len(run.tokens),
            "prompt_tokens": len(run.request.prompt_ids),
            "cached": run.cached,
            "finish": run.finish,
            "error": run.error,
            "details": stored.details,
        }
        target = self._of(run.id) / _DESCRIPTION
        beside = target.with_suffix(".new")
        with writing(target):
            with beside.open("w", encoding="utf-8") as file:
                json.dump(description, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)

    def delete(self, run: Run) -> None:
        """Removes everything about a run."""
        if run.journal is not None:
            run.journal.close()
        with self._saving:  # a description written beside this would leave the folder
            shutil.rmtree(self._of(run.id), ignore_errors=True)

    def has(self, run_id: str) -> bool:
        """Whether the folder has a run of this id."""
        return (self._of(run_id) / _DESCRIPTION).exists()

    def load(self, run_id: str) -> StoredRun | None:
        """A run as the folder describes it; None if there is none of that id, or none of this checkpoint."""
        if not _ID.fullmatch(run_id):
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
            return self._load(run_id)
        return None

    def unfinished(self) -> list[str]:
        """The ids of the background runs that a stopped server left without an end, the oldest first."""
        found = []
        for place in self.folder.iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                description = _described(place)
                if description["state"] == "active" and description["background"]:
                    found.append((description["created"], place.name))
        return [run_id for _, run_id in sorted(found)]

    def _load(self, run_id: str) -> StoredRun:
        kept = _described(self._of(run_id))
        header = recorded_header(self._of(run_id) / _JOURNAL)
        if header is None:  # the server was killed before the journal began
            raise UserError(f"run {run_id} has no journal")
        details = kept["details"]
        ignored = bool(details["ignore_eos"])
        request = Request(
            prompt_ids=header["prompt_ids"],
            sampling=SamplingConfig(**header["sampling"]),
            max_new_tokens=kept["max_new_tokens"],
            min_new_tokens=header["min_new_tokens"],
            eos_token_ids=() if ignored else tuple(header["eos_token_ids"]),
            stops=tuple(header["stop"]),
            stop_token_ids=tuple(kept["stop_token_ids"]),
            stops_from=int(kept.get("stops_from", 0)),
            stop_on_repetition=details.get("on_repetition") == OnRepetition.END,
        )
        run = Run(
            request,
            kept["owner"],
            self._model.tokenizer,
            id=run_id,
            created=kept["created"],
            cached=kept.get("cached", 0),  # descriptions of earlier versions lack it
            **described(details, run_id),
        )
        run.journal = journal = self._journal(run, ignored, header)
        updates = restored(run, journal.parts)
        journal.parts = []
        if not run.state.ended and kept["state"] != "active":
            run.state, run.finish, run.error = RunState(kept["state"]), kept["finish"], kept["error"]
        elif not run.state.ended and not kept["background"]:
            run.state, run.finish = RunState.CANCELLED, INTERRUPTED
        elif run.looping and details.get("passed_loop") != len(run.tokens):
            run.state = RunState.PAUSED  # the server was killed between the last token and the description
        if run.state.ended:
            journal.close()
            run.journal = None
        else:
            journal.begin()
        return StoredRun(run, kept["background"], details, updates)

    def _journal(self, run: Run, ignore_eos: bool, past: Mapping[str, Any] | None = None) -> Journal:
        """The journal of a run; `past` is the header that it has already."""
        model, known = self._model, self.fingerprint
        if past is not None:
            model = replace(model, eos_token_ids=tuple(past["eos_token_ids"]))
            if past["checkpoint"] != known:
                known = checkpoint.known_fingerprint(model.path, past["checkpoint"])
        header = journal_header(model, run.request, ignore_eos=ignore_eos, fingerprint=known)
        path = self._of(run.id) / _JOURNAL
        return Journal(path, header, resume=path.exists(), vocab=self._model.config.vocab_size)

    def _of(self, run_id: str) -> Path:
        return self.folder / run_id


def described(details: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """The attributes of a run that its details name."""
    name, first = details.get("on_repetition"), run_id if details.get("surface") == "runs" else None
    return {
        "on_repetition": None if name is None else OnRepetition(name),
        "salt": details.get("cache_salt", ""),
        "family": details.get("family", first),
    }


def _described(place: Path) -> dict[str, Any]:
    return json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
