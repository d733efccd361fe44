"""The sharding of every array on a mesh: this module alone maps array dimensions to mesh axes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tokenswift_jax import arrays
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig

TENSOR = "tensor"  # heads, the MLP's inner size and the vocabulary

# Specs by the last two names of a parameter's path; other parameters are replicated. Projections that read the
# residual stream are split by column, those that write it by row, so a layer needs two sums across devices.
_PARAMETERS = {
    ("qkv_proj", "kernel"): P(None, TENSOR, None, None),  # `models.joined`: by KV head
    ("qkv_proj", "bias"): P(TENSOR, None, None),
    ("gate_up_proj", "kernel"): P(None, None, TENSOR),
    ("gate_up_proj", "bias"): P(None, TENSOR),
    ("q_proj", "kernel"): P(None, TENSOR),
    ("k_proj", "kernel"): P(None, TENSOR),
    ("v_proj", "kernel"): P(None, TENSOR),
    ("q_proj", "bias"): P(TENSOR),
    ("k_proj", "bias"): P(TENSOR),
    ("v_proj", "bias"): P(TENSOR),
    ("o_proj", "kernel"): P(TENSOR, None),
    ("gate_proj", "kernel"): P(None, TENSOR),
    ("up_proj", "kernel"): P(None, TENSOR),
    ("gate_proj", "bias"): P(TENSOR),
    ("up_proj", "bias"): P(TENSOR),
    ("down_proj", "kernel"): P(TENSOR, None),
    ("lm_head", "kernel"): P(None, TENSOR),
    ("draft_lm_head", "kernel"): P(None, TENSOR),
    ("linear", "kernel"): P(None, TENSOR),  # draft heads
    ("linear", "bias"): P(TENSOR),
}
_EMBEDDINGS = P(TENSOR, None)
# Mesh axes by the axes that fields name (`arrays.axes`): caches, their positions and queries are split by head.
_AXES = {"kv_heads": TENSOR, "heads": TENSOR}


def check_mesh(config: ModelConfig, devices: int) -> None:
    """Raises UserError if a model cannot be split over this many devices."""
    for name in ("num_kv_heads", "num_heads", "intermediate_size", "vocab_size"):
        if getattr(config, name) % devices:
            raise UserError(f"{name} {getattr(config, name)} cannot be split over {devices} devices; use a divisor")


def split_over(axis: str) -> bool:
    """Whether a mesh is in use and has several devices along the axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and axis in mesh.axis_names and mesh.shape[axis] > 1


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf: for a dataclass by the axes that its fields name, for parameters by the names on
    their path; None stays None."""
    if isinstance(tree, tuple):
        return tuple(shardings(mesh, part) for part in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = {}
        for field in dataclasses.fields(tree):
            if field.metadata.get("static"):
                continue
            value, names = getattr(tree, field.name), field.metadata.get("axes")
            if names is None:
                parts[field.name] = shardings(mesh, value)
                continue
            place = arrays.sharding(mesh, names, _AXES)
            parts[field.name] = jax.tree.map(lambda _, place=place: place, value)
        return dataclasses.replace(tree, **parts)

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _parameter_spec([_name(key) for key in path]))

    return jax.tree_util.tree_map_with_path(one, tree)


def _parameter_spec(names: list[str]) -> P:
    names = [name for name in names if name != "value"]  # nnx wraps a parameter in a variable
    if "embed_tokens" in names:
        return _EMBEDDINGS
    spec = _PARAMETERS.get((names[-2], names[-1]), P()) if len(names) > 1 else P()
    return P(None, *spec) if "stack" in names else spec  # `models.stacked`: first come groups of layers


def _name(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
