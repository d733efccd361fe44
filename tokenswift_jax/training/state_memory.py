"""The memory that a training run's parameters, gradients and optimizer state need, checked before they are loaded."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from tokenswift_jax.checkpoint.match import abstract_decoder
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.node_sets import NO_NODE_SETS
from tokenswift_jax.parallel.device_memory import least_free
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shares import Shares

_TRAINED = 4  # float32 copies of a trained parameter: itself, its gradient, and Adam's two averages


def state_bytes(config: ModelConfig, settings: TrainingSettings, stored: np.dtype, shares: Shares) -> int:
    """The bytes of parameters, gradients and optimizer state that each device stores.

    Args:
      config: the checkpoint's.
      settings: those of the run.
      stored: the dtype of the backbone's parameters.
      shares: the devices of the run.
    """
    wanted = replace(config, node_sets=NO_NODE_SETS, draft_vocab=None, **settings.head_fields)
    _, trained, backbone = nnx.split(abstract_decoder(wanted, stored), nnx.PathContains("draft_heads"), ...)
    trained = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), trained)
    copies = _TRAINED if settings.what == "all" else 1
    return _TRAINED * shares.bytes_on_each(trained) + copies * shares.bytes_on_each(backbone)


def check_memory(config: ModelConfig, settings: TrainingSettings, stored: np.dtype, shares: Shares) -> None:
    """Checks that the devices have memory for the state of a run; the activations of a step come on top.

    Raises:
      UserError: they do not; it names the device, the bytes that are missing, and the remedy.
    """
    needed = state_bytes(config, settings, stored, shares)
    devices = [jax.local_devices()[0]] if shares.mesh is None else list(shares.mesh.devices.flat)
    free, device = least_free(devices)
    if free is None or needed <= free:
        return
    what = f"{needed / 1e9:.3g} GB of parameters, gradients and optimizer state"
    short = f"and {device} has {free / 1e9:.3g} GB free: {(needed - free) / 1e9:.3g} GB are missing"
    unused, none_left = jax.device_count() > len(devices), "there is no device left to share them"
    if shares.mesh is not None:
        remedy = "a larger data axis stores less on each" if unused else none_left
        raise UserError(f"training puts {what} on each device of this mesh, {short}; {remedy}", arguments=("mesh",))
    if unused:
        raise UserError(
            f"training puts {what} on one device, {short}; mesh=data=N stores a part on each of N", arguments=("mesh",)
        )
    raise UserError(f"training puts {what} on one device, {short}; {none_left}")
