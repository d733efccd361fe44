"""The parameters of training: a checkpoint's backbone and its draft heads, separated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.load import parse_dtype
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.models.node_sets import NO_NODE_SETS
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.state_memory import check_memory


@dataclass(frozen=True)
class Learner:
    """A decoder split for training.

    Attributes:
      config: the decoder's configuration, with the heads in training.
      graph: the decoder's structure, to merge with (heads, backbone).
      heads: float32 parameters of the draft heads.
      backbone: all other parameters, in float32 when they train, else in the dtype of computation.
      dtype: dtype of the forward and backward passes.
      continues: whether the heads are those of the checkpoint, not fresh ones.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    heads: nnx.State
    backbone: nnx.State
    dtype: Any
    continues: bool

    def over(self, drafted: DraftVocab | None) -> Learner:
        """The same parameters with heads that score another draft vocabulary."""
        config = replace(self.config, draft_vocab=drafted)
        return replace(self, config=config, graph=_graph(config, jax.tree.leaves(self.backbone)[0].dtype))


def load_learner(folder: Path, settings: TrainingSettings, shares: Shares = ONE_DEVICE) -> Learner:
    """Reads the checkpoint. It keeps heads of the wanted type and number, and replaces other heads by fresh ones.

    On the devices of a mesh, each parameter of the checkpoint goes to its shares directly.

    Raises:
      UserError: the checkpoint is invalid, `max_length` exceeds its positions, or the devices have too little memory.
    """
    dtype = compute_dtype(settings)
    stored = np.dtype(np.float32) if settings.what == "all" else dtype
    opened = checkpoint.open_checkpoint(folder)
    check_memory(opened.config, settings, stored, shares)
    place = None if shares.mesh is None else shares.sharding
    config, graph, params = checkpoint.load_decoder(
        opened, stored, sharding=place, copies=False, join=False, stack=False
    )
    if settings.max_length > config.max_position_embeddings:
        raise UserError(
            f"max_length {settings.max_length} exceeds the model's {config.max_position_embeddings} positions",
            arguments=("max_length",),
        )
    wanted = replace(config, **settings.head_fields, node_sets=NO_NODE_SETS, expected_tokens=None)
    loaded = nnx.merge(graph, params)
    _, heads, backbone = nnx.split(loaded, nnx.PathContains("draft_heads"), ...)
    continues = (config.num_draft_heads, config.draft_head_type) == (settings.heads, settings.head_type)
    if not continues:
        heads = fresh_heads(wanted, loaded.norm.scale[...], settings.seed)
    heads = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), heads)
    return Learner(wanted, _graph(wanted, stored), heads, backbone, dtype, continues)


def _graph(config: ModelConfig, dtype: Any) -> nnx.GraphDef:
    """The structure to merge with (heads, backbone); the LM head's columns for drafts are no parameters of it."""
    shell = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    shell.draft_lm_head = None
    return nnx.split(shell, nnx.PathContains("draft_heads"), ...)[0]


def compute_dtype(settings: TrainingSettings) -> Any:
    """The dtype of the passes: that of the settings, else bfloat16 on accelerators and float32 on CPU."""
    if settings.dtype is not None:
        return parse_dtype(settings.dtype)
    return np.dtype(np.float32) if jax.default_backend() == "cpu" else np.dtype(jnp.bfloat16)


def fresh_heads(config: ModelConfig, final_norm: jax.Array, seed: int) -> nnx.State:
    """Untrained heads: each returns the hidden state that it reads, under the backbone's own final norm."""
    tiny = replace(config, num_layers=0, sliding_windows=(), vocab_size=1, intermediate_size=1, draft_vocab=None)
    model = Decoder(tiny, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(seed))
    assert model.draft_heads is not None
    for head in model.draft_heads.heads:
        if config.draft_head_type == "medusa":
            continue  # it reads the output of the final norm already
        head.post_layernorm.scale[...] = jnp.array(final_norm, jnp.float32)  # a copy, because steps donate their state
    return nnx.split(model, nnx.PathContains("draft_heads"), ...)[1]
