"""The inputs of a layer's attention: queries, keys and values before rotation, apart or from one map."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from pallas_kernels.add_norm.reference import rms_norm
from pallas_kernels.rotate_write import HeadNorms
from tokenswift_jax.models.rope import Rotation


@dataclass(frozen=True)
class Apart:
    """Queries, keys and values as three maps give them.

    Attributes:
      queries: [batch, rows, query_heads, head_dim], normalised where the model does so.
      keys: [batch, rows, kv_heads, head_dim], likewise.
      values: [batch, rows, kv_heads, head_dim].
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array

    def rotated(self, rotation: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries and keys, and the values."""
        return rotation.apply(self.queries), rotation.apply(self.keys), self.values


@dataclass(frozen=True)
class Together:
    """Queries, keys and values as one map gives them (`models.joined`).

    Attributes:
      heads: [batch, rows, kv_heads, group + 2, head_dim]: of each KV head its queries, its key and its value.
      norms: norms of queries and keys that are not applied yet; None: the model has none.
    """

    heads: jax.Array
    norms: HeadNorms | None

    def rotated(self, rotation: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `Apart.rotated`."""
        batch, rows, _, _, head_dim = self.heads.shape
        queries, keys = self.heads[..., :-2, :].reshape(batch, rows, -1, head_dim), self.heads[..., -2, :]
        if self.norms is not None:
            queries = rms_norm(queries, self.norms.queries, self.norms.eps)
            keys = rms_norm(keys, self.norms.keys, self.norms.eps)
        return Apart(queries, keys, self.heads[..., -1, :]).rotated(rotation)


Projected = Apart | Together
