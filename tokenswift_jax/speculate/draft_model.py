"""The quantised draft model: a decoder with the target's weights in fewer bits, which drafts in the target's place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.models.quantized import quantized
from tokenswift_jax.speculate.drafter import DraftWeights
from tokenswift_jax.speculate.plans import NamedPlan

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def with_draft_model(model: Model, named: list[NamedPlan], kind: str) -> tuple[list[NamedPlan], Any]:
    """Returns the plans with a draft model whose weights are in `kind` (of `quantized.KINDS`), and its parameters.

    The draft model shares all arrays that are not quantised with the target. If a plan drafts with the backbone, its
    layers are quantised too, which costs additional memory. Plans that draft without weights do not change.
    """
    decoder = nnx.merge(model.graphdef, model.params)
    backbone = any(entry.plan.drafter.weights == DraftWeights.LAYERS for entry in named)
    graph, params = nnx.split(quantized(decoder, kind, backbone=backbone))
    params = jax.tree.map(_callable, params)
    drafting = [
        replace(entry, plan=replace(entry.plan, draft_graph=graph)) if entry.plan.drafter.weights else entry
        for entry in named
    ]
    return drafting, params


def _callable(leaf: jax.Array) -> jax.Array:
    """Copies int4 arrays through the host, so that executables accept them.

    JAX rejects an int4 array that is bound to a device as an executable's argument: it compares two descriptions of the
    array's layout, and only one of them contains the size of the elements in bits.
    """
    return jnp.asarray(np.asarray(leaf)) if leaf.dtype == jnp.int4 else leaf
