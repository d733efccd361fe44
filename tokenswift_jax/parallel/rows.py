"""Rows of a batch on the data axis: each group of devices runs a whole program on its own rows.

The groups exchange nothing while the program runs, and a group that has finished its rows does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.mesh_spec import CONTEXT, DATA, MODEL
from tokenswift_jax.parallel.rules import free_axes, size_of, specs

ROWS = P(DATA)  # the spec of an array whose first dimension is the batch
EVERY = P()  # of an array that all groups have


def over_rows(function: Callable[..., Any], arguments: tuple, results: Any, batch: int) -> Any:
    """Calls `function`; under a mesh with a data axis, each group of devices calls it for its own rows.

    If the groups cannot share the batch evenly, each of them computes all rows.

    Args:
      function: takes `arguments`; its results for one group have the group's rows as their batch.
      arguments: dataclasses whose fields name their dimensions, arrays [batch, ...] of two or more dimensions, scalars,
        and parameters.
      results: the specs of the results, ROWS or EVERY, or the index of the argument whose specs a result has.
      batch: rows of all groups.
    """
    groups = size_of(DATA)
    if groups == 1:
        return function(*arguments)
    if batch % groups:
        given, found = EVERY, EVERY
    else:
        given = tuple(_specs(groups, argument) for argument in arguments)
        found = jax.tree.map(lambda one: given[one] if isinstance(one, int) else one, results, is_leaf=_is_spec)
    # With one device a group, no axis is left for XLA to split, and it need not know how to split a Pallas call.
    names = free_axes() if size_of(MODEL) == size_of(CONTEXT) == 1 else {DATA}
    return jax.shard_map(function, in_specs=given, out_specs=found, axis_names=names, check_vma=False)(*arguments)


def over_groups(value: jax.Array) -> jax.Array:
    """The largest value, [], of all groups, inside `over_rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    inside = DATA in mesh.axis_names and mesh.axis_types[mesh.axis_names.index(DATA)] == jax.sharding.AxisType.Manual
    return jax.lax.pmax(value, DATA) if inside else value


def _specs(groups: int, argument: Any) -> Any:
    if isinstance(argument, jax.Array):
        return ROWS if argument.ndim > 1 else EVERY
    return specs({DATA: groups}, argument)


def _is_spec(entry: Any) -> bool:
    return isinstance(entry, P)
