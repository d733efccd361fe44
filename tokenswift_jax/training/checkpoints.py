"""Training checkpoints: parameters, optimizer, position in the data and settings, written while training continues."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from tokenswift_jax.checkpoint.tensorstore_errors import system_error
from tokenswift_jax.errors import NO_ROOM, UserError, writing
from tokenswift_jax.file_lock import take_lock
from tokenswift_jax.paths import resolved
from tokenswift_jax.training.step import TrainState

LOCK_FILE = "lock"  # in the state folder of a run; a process that works there has its lock


@dataclass(frozen=True)
class Place:
    """The state of a run apart from its parameters.

    Attributes:
      data: state of the data iterator.
      facts: settings, data and model of the run, which must not change when it is resumed (JSON).
    """

    data: dict[str, Any]
    facts: dict[str, Any]


def has_whole(folder: Path) -> bool:
    """Whether a folder of checkpoints has a whole one; unlike `Checkpoints`, it makes no folder and deletes nothing."""
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


@contextmanager
def one_run(output: Path, folder: Path) -> Iterator[None]:
    """Lets no other run work in `folder`, the state folder of `output`, during the block; makes it where it is missing.

    Raises:
      UserError: another run works there.
      WriteError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a")
    with file:
        if not take_lock(file):
            raise UserError(
                f"output {output} is in use by another run; wait for it or name another folder", arguments=("output",)
            )
        yield


class Checkpoints:
    """The last checkpoint of a run and its best one by the held-out loss, in one folder.

    Saving is asynchronous: `save` copies the arrays before it returns, and orbax writes the files while training
    continues. A kill at any moment leaves only whole checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        # Without these levels, orbax logs every file that it writes, and a traceback for one that fails; `finish`
        # raises that error anyway.
        for name in ("absl", "concurrent.futures"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = resolved(folder)
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),  # orbax must not delete the previous one while it writes the newest
                policies.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
        )

    def latest(self) -> int | None:
        """The newest whole checkpoint's step, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, place: Place, held_out_loss: float | None) -> None:
        """Writes the state in the background.

        Raises:
          UserError: an earlier write failed, such as on a full disk.
        """
        metrics = None if held_out_loss is None else {"loss": held_out_loss}
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(named(state)),
                    place=ocp.args.JsonSave({"data": place.data, "facts": place.facts}),
                ),
                metrics=metrics,
                force=True,
            )
        except (OSError, ValueError) as error:
            raise _unwritten(self.folder, error) from None

    def restore(self, like: TrainState) -> tuple[TrainState, Place]:
        """The newest checkpoint in the structure of `like`, whose shapes and shardings the arrays have, from any
        mesh."""
        step = self.latest()
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(named(like)), place=ocp.args.JsonRestore()),
        )
        leaves = [restored["state"][name] for name in named(like)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return state, Place(restored["place"]["data"], restored["place"]["facts"])

    def facts(self) -> dict[str, Any]:
        """The facts of the newest checkpoint, read without its arrays."""
        args = ocp.args.Composite(place=ocp.args.JsonRestore())
        return self._manager.restore(self.latest(), args=args)["place"]["facts"]

    def finish(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: a write failed, such as on a full disk.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _unwritten(self.folder, error) from None

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def named(state: TrainState) -> dict[str, jax.Array]:
    """The state's arrays by their path, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _unwritten(folder: Path, error: Exception) -> UserError:
    _silence_threads()
    found = error if isinstance(error, OSError) else system_error(error)
    reason = " ".join(str(error).split())[-200:] if found is None or not found.strerror else found.strerror
    first = "make room and " if found is not None and found.errno in NO_ROOM else ""
    return UserError(
        f"cannot write a checkpoint ({reason}); {first}continue with resume=True, from those in {folder}",
        arguments=("resume",),
    )


def _silence_threads() -> None:
    """Silences the writer's threads. Without it, they print tracebacks of the same failure around the one line of the
    `UserError`."""
    threading.excepthook = lambda *_: None
    sys.unraisablehook = lambda *_: None
