"""Programs that parts of a mesh run as a whole: groups of devices on their own rows, stages on their own layers.

Groups on `data` exchange nothing while the program runs, and a group that has finished its rows does not wait. Stages
run the same program on the same rows, and hand each other the rows between their layers (`parallel.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.mesh_spec import CONTEXT, DATA, MODEL, STAGE
from tokenswift_jax.parallel.rules import RULES, free_axes, kept, size_of, specs

ROWS = P(*RULES["batch"])  # the spec of an array whose first dimension is the batch
LAYERS = P(*RULES["layers"])  # of one whose first dimension is the layers
EVERY = P()  # of an array that all groups have


def over_rows(function: Callable[..., Any], arguments: tuple, results: Any, batch: int) -> Any:
    """Calls `function`; under a mesh with a data axis, each group of devices calls it for its own rows, and under one
    with stages, each stage for its own layers.

    If the groups cannot share the batch evenly, each of them computes all rows.

    Args:
      function: takes `arguments`; its results for one group have the group's rows as their batch.
      arguments: dataclasses whose fields name their dimensions, arrays [batch, ...] of two or more dimensions, scalars,
        and parameters.
      results: the specs of the results, ROWS, EVERY or others, or the index of the argument whose specs a result has.
      batch: rows of all groups.
    """
    sizes = {axis: size_of(axis) for axis in (DATA, STAGE)}
    if all(size == 1 for size in sizes.values()):
        return function(*arguments)
    if batch % sizes[DATA]:
        sizes[DATA] = 1
    split = {axis for axis, size in sizes.items() if size > 1}
    given = tuple(kept(split, _specs(sizes, argument)) for argument in arguments)
    found = jax.tree.map(lambda one: given[one] if isinstance(one, int) else one, results, is_leaf=_is_spec)
    # With one device a group, no axis is left for XLA to split, and it need not know how to split a Pallas call.
    names = free_axes() if size_of(MODEL) == size_of(CONTEXT) == 1 else {DATA, STAGE} & free_axes()
    split_function = jax.shard_map(
        function, in_specs=given, out_specs=kept(split, found), axis_names=names, check_vma=False
    )
    return split_function(*arguments)


def over_groups(value: jax.Array) -> jax.Array:
    """The largest value, [], of all groups, inside `over_rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    inside = DATA in mesh.axis_names and mesh.axis_types[mesh.axis_names.index(DATA)] == jax.sharding.AxisType.Manual
    return jax.lax.pmax(value, DATA) if inside else value


def of_group(row: jax.Array, own: int, batch: int) -> tuple[jax.Array, jax.Array | None]:
    """The place of a row, int32 [], among the `own` rows of this group, and whether the group has it, bool []; inside
    `over_rows`. None: every group has all rows of the batch."""
    if own == batch:
        return row, None
    place = row - jax.lax.axis_index(DATA).astype(jnp.int32) * own
    return jnp.clip(place, 0, own - 1), (place >= 0) & (place < own)


def _specs(sizes: Mapping[str, int], argument: Any) -> Any:
    if isinstance(argument, jax.Array):
        return ROWS if argument.ndim > 1 else EVERY
    return specs(sizes, argument)


def _is_spec(entry: Any) -> bool:
    return isinstance(entry, P)
