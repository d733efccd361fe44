"""The folder of runs: a journal and a description for each, from which a restarted server goes on."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenswift_jax import checkpoint
from tokenswift_jax.engine.journal import Journal, OtherRunError, recorded_header
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.journal_header import journal_header
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.description import ACTIVE, Description, is_described, is_id, read_description
from tokenswift_jax.serve.run import OnRepetition, Run, RunState, Update, restored
from tokenswift_jax.token_log import TokenLog

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_RECORD = 1024  # tokens of a record of a branch's first tokens: an event of 100K would stall a page
_JOURNAL = "journal"
_ABANDONED = 3600.0  # seconds after which no server still works at a folder without a description

logger = logging.getLogger(__name__)


class UnreadableError(UserError):
    """The folder has a run whose tokens this server cannot read; the message says why.

    Attributes:
      description: the run's description.
    """

    def __init__(self, message: str, description: Description) -> None:
        super().__init__(message)
        self.description = description


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

        The description comes last: a folder without one is no run. Without this order, a branch whose server is killed
        meanwhile would begin with fewer tokens of its parent than it says.
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
            journal.begin()
            if begun is not None and len(begun):
                for start in range(0, len(begun), _RECORD):
                    update = run.add(begun.part(start, start + _RECORD))
                    journal.append(update.log, [])
                    stored.updates.append(update)
            self.save(stored)
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

    def listed(self, owner: str) -> list[Description]:
        """The descriptions of the runs of an owner, the newest first."""
        found = [each for each in map(read_description, self.folder.iterdir()) if each is not None]
        own = [description for description in found if description.owner == owner]
        return sorted(own, key=lambda description: (description.created, description.id), reverse=True)

    def save(self, stored: StoredRun) -> None:
        """Writes the description of a run, whole or not at all.

        Raises:
          WriteError: the system refuses.
        """
        with self._saving:  # the scheduler's thread and a request may save at once; the later one has the newer state
            self._save(stored)

    def _save(self, stored: StoredRun) -> None:
        run = stored.run
        stays = run.state.ended or run.state is RunState.PAUSED
        Description(
            id=run.id,
            owner=run.owner,
            created=run.created,
            background=stored.background,
            max_new_tokens=run.request.max_new_tokens,
            stop_token_ids=run.request.stop_token_ids,
            stops_from=run.request.stops_from,
            state=run.state.value if stays else ACTIVE,
            tokens=len(run.tokens),
            prompt_tokens=len(run.request.prompt_ids),
            cached=run.cached,
            finish=run.finish,
            error=run.error,
            details=stored.details,
        ).write(self._of(run.id))

    def delete(self, run: Run) -> None:
        """Removes everything about a run."""
        if run.journal is not None:
            run.journal.close()
        self.remove(run.id)

    def remove(self, run_id: str) -> None:
        """Removes the folder of a run."""
        with self._saving:  # a description written beside this would leave the folder
            shutil.rmtree(self._of(run_id), ignore_errors=True)

    def has(self, run_id: str) -> bool:
        """Whether the folder has a run of this id."""
        return is_described(self._of(run_id))

    def load(self, run_id: str) -> StoredRun | None:
        """A run as the folder describes it; None if there is none of that id.

        Raises:
          UnreadableError: there is one, and this server cannot go on with its tokens.
        """
        kept = read_description(self._of(run_id)) if is_id(run_id) else None
        if kept is None:
            return None
        try:
            return self._load(kept)
        except OtherRunError as error:
            reason = f"it was written with other values than this server's: {', '.join(error.fields)}"
        except UserError as error:
            # An error of the journal goes on to advise a command's user, and names the file.
            reason = str(error).partition(";")[0].replace(f"journal {self._of(run_id) / _JOURNAL}", "its journal")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"its files are damaged ({type(error).__name__})"
        raise UnreadableError(reason, kept)

    def unfinished(self) -> list[str]:
        """The ids of the background runs that a stopped server left without an end, the oldest first.

        Removes what a server left that was killed while it made a run.
        """
        found = []
        for place in filter(lambda place: is_id(place.name), self.folder.iterdir()):
            description = read_description(place)
            if description is not None and description.state == ACTIVE and description.background:
                found.append((description.created, description.id))
            elif description is None and is_described(place):
                logger.warning("run %s is left out: its description is damaged", place.name)
            elif description is None:
                with contextlib.suppress(OSError):  # another server may remove it now
                    if time.time() - place.stat().st_mtime > _ABANDONED:
                        self.remove(place.name)
        return [run_id for _, run_id in sorted(found)]

    def _load(self, kept: Description) -> StoredRun:
        run_id, details = kept.id, kept.details
        header = recorded_header(self._of(run_id) / _JOURNAL)
        if header is None:
            raise UserError("its journal is gone or damaged")
        ignored = bool(details["ignore_eos"])
        request = Request(
            prompt_ids=header["prompt_ids"],
            sampling=SamplingConfig(**header["sampling"]),
            max_new_tokens=kept.max_new_tokens,
            min_new_tokens=header["min_new_tokens"],
            eos_token_ids=() if ignored else tuple(header["eos_token_ids"]),
            stops=tuple(header["stop"]),
            stop_token_ids=kept.stop_token_ids,
            stops_from=kept.stops_from,
            stop_on_repetition=details.get("on_repetition") == OnRepetition.END,
        )
        run = Run(
            request,
            kept.owner,
            self._model.tokenizer,
            id=run_id,
            created=kept.created,
            cached=kept.cached,
            **described(details, run_id),
        )
        run.journal = journal = self._journal(run, ignored, header)
        updates = restored(run, journal.parts)
        journal.parts = []
        if not run.state.ended and kept.state != ACTIVE:
            run.state, run.finish, run.error = RunState(kept.state), kept.finish, kept.error
        elif not run.state.ended and not kept.background:
            run.state, run.finish = RunState.CANCELLED, INTERRUPTED
        elif run.looping and details.get("passed_loop") != len(run.tokens):
            run.state = RunState.PAUSED  # the server was killed between the last token and the description
        if run.state.ended:
            journal.close()
            run.journal = None
        else:
            journal.begin()
        return StoredRun(run, kept.background, details, updates)

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
