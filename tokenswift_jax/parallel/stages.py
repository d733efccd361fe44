"""Stages: parts of a mesh that have different layers of a model, through which rows pass one after the other.

The groups of `models.stacked` are the stages' layers. A program of layers is an island over `stage` as a whole
(`parallel.rows`): every stage computes everything but the layers, with the same results, and of the layers its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from tokenswift_jax.errors import UserError
from tokenswift_jax.in_place import update_if
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.mesh_spec import STAGE

_Tree = TypeVar("_Tree")
Run = Callable[[jax.Array, Any], tuple[jax.Array, Any, Any]]


@dataclass(frozen=True)
class OwnLayers:
    """The computation of a stage's own layers, which static settings make one of a few.

    Attributes:
      runs: each takes rows and carry, and returns rows, outputs and carry.
      kinds: for each stage, the place among `runs` of its own.
    """

    runs: tuple[Run, ...]
    kinds: tuple[int, ...]

    def run_if(self, condition: jax.Array, x: jax.Array, outputs: Any, carry: Any) -> tuple[jax.Array, Any, Any]:
        """Rows, outputs and carry after the stage's layers where the condition, bool [], is true; else unchanged."""
        own = jnp.asarray(self.kinds, jnp.int32)[this_stage()]
        state = x, outputs, carry
        for kind, run in enumerate(self.runs):
            state = update_if(condition & (own == kind), lambda state, run=run: run(state[0], state[2]), state)
        return state


def stages_here() -> int:
    """The stages of the island that JAX traces here; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or STAGE not in mesh.axis_names:
        return 1
    return mesh.shape[STAGE] if mesh.axis_types[mesh.axis_names.index(STAGE)] == AxisType.Manual else 1


def this_stage() -> jax.Array:
    """The number of the stage that computes, int32 []; inside an island, as all functions below."""
    return lax.axis_index(STAGE).astype(jnp.int32)


def of_this_stage(layers: jax.Array) -> jax.Array:
    """The stage's own entries of [layers, ...]; all of them without stages."""
    stages = stages_here()
    if stages == 1:
        return layers
    own = layers.shape[0] // stages
    return lax.dynamic_slice_in_dim(layers, this_stage() * own, own)


def in_turn(layers: OwnLayers, x: jax.Array, carry: Any) -> tuple[jax.Array, Any, Any]:
    """Passes rows through all stages' layers. Returns the last stage's rows on every stage, the stage's own outputs,
    and its carry.

    In each turn one stage computes while the others wait, and gives all of them its rows. Groups of the data axis run
    as many turns as their rows need, so each collective is one group's: a `ppermute` would be that of all devices.

    Args:
      layers: computes a stage's layers.
      x: the rows, the same on every stage.
      carry: the stage's own; XLA updates it in place.
    """
    outputs = jax.tree.map(jnp.zeros_like, jax.eval_shape(layers.runs[0], x, carry)[1])

    def turn(number: jax.Array, state: tuple) -> tuple:
        x, outputs, carry = layers.run_if(this_stage() == number, *state)
        return lax.all_gather(x, STAGE)[number], outputs, carry

    return lax.fori_loop(jnp.int32(0), jnp.int32(stages_here()), turn, (x, outputs, carry))


def handed_on(x: jax.Array) -> jax.Array:
    """The x of the stage before this one; the first stage gets that of the last. All devices have to call it."""
    stages = lax.axis_size(STAGE)
    return lax.ppermute(x, STAGE, [(stage, (stage + 1) % stages) for stage in range(stages)])


def of_first_stage(tree: _Tree) -> _Tree:
    """The first stage's integers and booleans on every stage; nothing changes without stages.

    Without this, stages whose logits differ by rounding could draw different tokens, and wait for each other forever.
    """
    if stages_here() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    words = jnp.concatenate([leaf.astype(jnp.int32).reshape(-1) for leaf in leaves])  # one collective for all
    first, ends = lax.all_gather(words, STAGE)[0], np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(first, ends[:-1].tolist())
    return structure.unflatten(
        part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)
    )


def filled(config: ModelConfig, stages: int) -> ModelConfig:
    """The model with as many layers on each stage as on the others; layers of zeros, which change no row, fill the
    rest.

    Raises:
      UserError: there are more stages than layers.
    """
    if stages > config.num_layers:
        raise UserError(
            f"mesh {STAGE}={stages} has more stages than the model has layers; {STAGE}={config.num_layers} fits",
            arguments=("mesh",),
        )
    more = -config.num_layers % stages
    return replace(
        config,
        num_layers=config.num_layers + more,
        sliding_windows=(*config.sliding_windows, *config.sliding_windows[-1:] * more),
    )
