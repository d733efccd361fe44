"""The table of a mesh: every array, the names of its dimensions, its split and its bytes on each device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tokenswift_jax.parallel.rules import axes_in, named, spec_of_axes

_HEADER = ("array", "count", "shape", "axes", "split", "bytes a device")


def mesh_table(sizes: Mapping[str, int], trees: Mapping[str, Any]) -> str:
    """The table of trees of arrays or shapes on a mesh of such sizes ({}: one device), one line for all layers' arrays
    of one kind, and the sum.

    Each tree's name is the first part of its arrays' names.
    """
    lines: dict[tuple[str, ...], list[int]] = {}
    for title, tree in trees.items():
        for name, axes, leaf in named(tree):
            over = axes_in(spec_of_axes(sizes, axes, leaf.shape))
            own = math.prod(leaf.shape) // math.prod(sizes[axis] for axis in over) * jnp.dtype(leaf.dtype).itemsize
            split = ", ".join(over) or "replicated"
            shape = " x ".join(map(str, leaf.shape)) or "scalar"
            kind = re.sub(r"\.\d+(?=\.)", ".*", f"{title}.{name.removesuffix('.value')}")
            found = lines.setdefault((kind, shape, ", ".join(axes), split), [0, 0])
            found[0], found[1] = found[0] + 1, found[1] + own
    rows = [(kind, str(n), shape, axes, split, f"{own:,}") for (kind, shape, axes, split), (n, own) in lines.items()]
    total = sum(own for _, own in lines.values())
    rows = [_HEADER, *rows, ("all arrays", str(sum(n for n, _ in lines.values())), "", "", "", f"{total:,}")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (1, 5) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
