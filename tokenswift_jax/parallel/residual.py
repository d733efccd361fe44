"""The residual stream on a mesh: replicated on every device."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P


def replicate(x: jax.Array) -> jax.Array:
    """Replicates x on every device of the mesh in use, if there is one.

    Without this, XLA may split the stream and then copies slices of the weights at every step.
    """
    return x if jax.sharding.get_abstract_mesh().empty else jax.reshard(x, P())
