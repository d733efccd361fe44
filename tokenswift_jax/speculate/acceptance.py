"""The acceptance of one verify pass, which drafters and the commit read."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["path", "accepted", "emitted"], meta_fields=[])
@dataclass(frozen=True)
class Acceptance:
    """The acceptance of one verify pass.

    Attributes:
        path: int32 `[batch, depth + 1]`, tree rows from the root to the last accepted one, which then repeats.
        accepted: int32 `[batch]`, number m of accepted nodes, 0 to depth.
        emitted: int32 `[batch, depth + 1]`, the emitted tokens: the m accepted ones, then the draw of the last accepted
            tree row, which is the new root (`emitted[m]`), then -1.
    """

    path: jax.Array
    accepted: jax.Array
    emitted: jax.Array
