"""The writer of this project's checkpoint layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.checkpoint import save
from tokenswift_jax.checkpoint.counted import counted
from tokenswift_jax.checkpoint.directory import copy_companions
from tokenswift_jax.checkpoint.load import Checkpoint
from tokenswift_jax.checkpoint.names import HEAD_PREFIX
from tokenswift_jax.checkpoint.save import ARCHITECTURES
from tokenswift_jax.checkpoint.tensors import Tensor
from tokenswift_jax.errors import UserError
from tokenswift_jax.progress_report import Report, silent


def write_layout(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: np.dtype | None,
    *,
    reference_heads: bool = False,
    orbax: bool = False,
    report: Report = silent,
) -> str:
    """Writes a complete checkpoint (including a base) in this project's layout, cast if a dtype is given.

    Args:
      checkpoint: the checkpoint to write.
      folder: the destination, an existing directory.
      dtype: the dtype of the written tensors; None: no cast.
      reference_heads: whether to store draft heads among the model's tensors, under the reference program's names, and
        to omit the fields of draft heads that only this project has (the node set).
      orbax: whether to write an orbax checkpoint in place of safetensors files.
      report: receives the number of bytes written so far.

    Returns:
      A summary for a person.

    Raises:
      UserError: the checkpoint has no draft heads, or none that the reference program supports.
    """
    tensors, config = list(checkpoint.tensors.values()), _hf_config(checkpoint, dtype)
    if dtype is not None:
        tensors = [tensor.astype(dtype) for tensor in tensors]
    if reference_heads:
        tensors, config = _as_reference(checkpoint, tensors, config)
    with counted(tensors, "writing the checkpoint", report) as announced:
        save(folder, config, announced, orbax=orbax)
    copy_companions(checkpoint.directory, folder)
    return summary_of(tensors, checkpoint.config.num_draft_heads)


def summary_of(tensors: Sequence[Tensor], heads: int) -> str:
    """A summary of the written tensors, for a person."""
    total = sum(tensor.nbytes for tensor in tensors)
    return f"{len(tensors)} tensors, {total / 1e9:.3g} GB, {heads or 'no'} draft heads"


def _hf_config(checkpoint: Checkpoint, dtype: np.dtype | None) -> dict[str, Any]:
    config = dict(checkpoint.hf_config)
    config.setdefault("architectures", [ARCHITECTURES[checkpoint.config.model_type]])
    if dtype is not None:
        names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
        config |= dict.fromkeys(names, str(dtype))
    block = dict(config.pop("tokenswift", None) or {})
    config.pop("medusa_heads", None)
    if checkpoint.config.num_draft_heads:
        block.pop("base", None)
        required = {"num_heads": checkpoint.config.num_draft_heads, "head_type": checkpoint.config.draft_head_type}
        config["tokenswift"] = {"node_set": None} | block | required
    return config


def _as_reference(
    checkpoint: Checkpoint, tensors: list[Tensor], config: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Any]]:
    heads, kind = checkpoint.config.num_draft_heads, checkpoint.config.draft_head_type
    if not heads:
        raise UserError(f"{checkpoint.directory} has no draft heads to export")
    if kind != "chained":
        raise UserError(f"{kind} draft heads are none of the reference program's: it knows chained ones only")
    renamed = [
        replace(tensor, name=f"model.{tensor.name}") if tensor.name.startswith(HEAD_PREFIX) else tensor
        for tensor in tensors
    ]
    config = {name: value for name, value in config.items() if name != "tokenswift"}
    return renamed, config | {"medusa_heads": heads}
