"""Training from Python: `tokenswift_jax.SwiftTrainer(model_name=...).fine_tune(train_data=...)`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh_spec import MeshArgument


class SwiftTrainer:
    """Trains draft heads (or a whole model) for a checkpoint.

    Args:
      model_name: checkpoint directory or hub id; None is the bundled demo.
      max_length: tokens a training row.
      settings: further fields of `tokenswift_jax.training.settings.TrainingSettings`, such as `what="all"` or
        `head_type="chained"`.

    Raises:
      UserError: an unknown field.
    """

    def __init__(self, model_name: str | Path | None = None, max_length: int = 8192, **settings: Any) -> None:
        self.model_name = model_name
        self.settings = {"max_length": max_length, **settings}
        _check_known(self.settings)

    def fine_tune(
        self,
        train_data: str | Path | Sequence[str | Path],
        *,
        output: str | Path | None = None,
        eval_data: str | Path | Sequence[str | Path] = (),
        resume: bool = False,
        strict: bool = False,
        data_cache: str | Path | None = None,
        progress: TextIO | None = None,
        mesh: MeshArgument = None,
        **settings: Any,
    ) -> Path:
        """Trains, and returns the checkpoint directory, which `tokenswift_jax.load` and the commands read.

        Args:
          train_data: .txt or .jsonl files, folders or patterns.
          output: the directory to write; by default the model's name with `-heads`, in the working directory.
          eval_data: held-out text; without any, a hundredth of the documents is held out.
          resume: continue the run in `output`, or begin it.
          strict: a broken line of the data is an error.
          data_cache: folder for tokenised data.
          progress: stream for progress; standard error by default.
          mesh: the devices: "data=8" for eight that share the rows of a batch and the state of the run, "auto" for all;
            None: one device.
          settings: fields of `TrainingSettings`, such as `batch_size=8, epochs=3`.

        Raises:
          UserError: an error in model, data or settings, or a place that cannot be written.
        """
        from tokenswift_jax import checkpoint
        from tokenswift_jax.model import DEMO_MODEL
        from tokenswift_jax.training.extra import check_installed
        from tokenswift_jax.training.settings import read_settings

        _check_known(settings)
        check_installed()
        chosen = read_settings(None, self.settings | settings)
        from tokenswift_jax.training.trainer import Paths, default_cache, train

        named = DEMO_MODEL if self.model_name is None else self.model_name
        data, held_out = _paths(train_data), _paths(eval_data)
        model, hub_id = checkpoint.resolve(named), checkpoint.named_on_hub(named)
        name = model.name if hub_id is None else hub_id.split("/")[1]
        paths = Paths(
            model=model,
            data=data,
            held_out=held_out,
            output=Path(f"{name}-heads" if output is None else output),
            cache=default_cache() if data_cache is None else Path(data_cache),
            hub_id=hub_id,
        )
        return train(paths, chosen, resume=resume, strict=strict, say=progress or sys.stderr, mesh=mesh)


def _paths(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """The names of one or several files, folders or patterns.

    Raises:
      UserError: there is something else among them.
    """
    names = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | Path) else (given,)
    if not all(isinstance(name, str | Path) for name in names):
        raise UserError(f"the data is {given!r:.80}; it must be a file, a folder, a pattern, or a list of them")
    return tuple(map(str, names))


def _check_known(settings: dict[str, Any]) -> None:
    from dataclasses import fields

    from tokenswift_jax.training.settings import TrainingSettings

    known = {field.name for field in fields(TrainingSettings)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UserError(f"unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
