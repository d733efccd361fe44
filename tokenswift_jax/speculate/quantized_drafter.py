"""The decoder that drafts where it is not the target itself: the same weights in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.models.quantized import quantized
from tokenswift_jax.speculate.plans import NamedPlan

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def with_drafter(model: Model, named: list[NamedPlan], kind: str) -> tuple[list[NamedPlan], Any]:
    """The plans with a drafter whose weights are in `kind` (of `quantized.KINDS`), and its parameters.

    What is not quantised is shared with the target. The backbone's layers are quantised where a plan drafts with them,
    which takes memory of its own; plans that draft by n-grams alone stay as they are.
    """
    decoder = nnx.merge(model.graphdef, model.params)
    backbone = any(entry.plan.draft is not None for entry in named)
    graph, params = nnx.split(quantized(decoder, kind, backbone=backbone))
    params = jax.tree.map(_callable, params)
    drafting = [
        entry if entry.plan.kind == "ngram" else replace(entry, plan=replace(entry.plan, drafter=graph))
        for entry in named
    ]
    return drafting, params


def _callable(leaf: jax.Array) -> jax.Array:
    """The array as executables take it: jax refuses them int4 arrays that are bound to a device, whose layouts it
    states with the elements' bits in the one place and without in the other."""
    return jnp.asarray(np.asarray(leaf)) if leaf.dtype == jnp.int4 else leaf
