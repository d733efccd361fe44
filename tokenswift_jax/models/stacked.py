"""The first layers of a deep decoder as one stack, so that a program contains a group of them once.

XLA's time to compile grows with the layers that a program contains. A stacked decoder's program contains one group of
layers, which a loop runs once for each group, and the last layers. XLA for TPU reads a layer's weights in the stack.
GPUs have no stacks: XLA copies every weight out of it before it multiplies (4.8 GB of temporaries in a plain step of 80
layers of Llama-3.1-8B's shapes, compiled for an H200 with jax 0.11.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from pallas_kernels.implementation import implementation
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder

DEEP = 32  # layers; a decoder with no more has no stack
_STACKED = ("tpu",)
_LEAST = 8  # layers of a group: a loop's own cost is divided among them


@dataclass(frozen=True)
class Groups:
    """The first layers in groups of the same forms.

    Attributes:
      count: groups.
      size: layers of a group.
    """

    count: int
    size: int


def groups_for(config: ModelConfig) -> Groups | None:
    """The groups with which the device here decodes a model; None: the model has no stack here."""
    return groups_of(config.sliding_windows) if implementation() in _STACKED else None


def groups_of(windows: Sequence[int | None], deep: int = DEEP, least: int = _LEAST) -> Groups | None:
    """The groups that leave the fewest layers in a program, one after the last group included; None: no groups.

    At least one layer comes after the last group: of the last layer, prefill needs only keys and values.

    Args:
      windows: `ModelConfig.sliding_windows`; layers of different groups with the same place in them agree.
      deep: the most layers of a decoder without groups.
      least: layers of a group, at least.
    """
    layers = len(windows)
    if layers <= deep:
        return None
    found = []
    for size in range(least, layers // 2 + 1):
        count = 1
        while (count + 1) * size < layers and tuple(windows[count * size : (count + 1) * size]) == tuple(
            windows[:size]
        ):
            count += 1
        if count > 1:
            found.append((size + layers - count * size, Groups(count, size)))
    return min(found, key=lambda each: each[0])[1] if found else None


def stacked(decoder: Decoder, groups: Groups) -> Decoder:
    """Stacks the arrays of the first layers; modifies the given module and returns it.

    Layer i of a group has the arrays [groups, ...] of all groups' layers i. Unless the caller keeps them, the layers'
    own arrays are freed one after another.
    """
    count = groups.count * groups.size
    split = [nnx.split(layer) for layer in decoder.layers[:count]]
    decoder.layers = nnx.List(decoder.layers[count:])
    graphs = [graph for graph, _ in split[: groups.size]]
    states = [dict(nnx.to_flat_state(state)) for _, state in split]
    del split
    layers = [_stacked(graph, states[index :: groups.size]) for index, graph in enumerate(graphs)]
    decoder.stack = nnx.List(layers)
    return decoder


def _stacked(graph: nnx.GraphDef, states: Sequence[dict[Any, nnx.Param]]) -> Any:
    """One layer with the arrays of all; takes them out of the given states."""
    params = []
    for path in list(states[0]):
        parts = [state.pop(path) for state in states]
        params.append((path, parts[0].replace(jnp.stack([part[...] for part in parts]))))
        del parts
    return nnx.merge(graph, nnx.from_flat_state(params))
