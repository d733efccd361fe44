"""Attention as a decoder's caller supplies it, and the one over whole sequences without a cache."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from pallas_kernels.dtypes import wide_dtype
from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.models.projected import Projected
from tokenswift_jax.models.rope import Rotation


class Attention(Protocol):
    """Attention as the caller of the decoder supplies it: over a cache, packed documents or a whole sequence."""

    def __call__(
        self,
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        carry: Any,
        /,
    ) -> tuple[jax.Array, Any, Any]:
        """Mixed values [batch, rows, query_heads, head_dim], the layer's output to the caller, and the carry.

        layer is an int, or int32 [] if the caller scans layers; projected are queries, keys and values before rotation.
        """
        ...


def causal_attention(config: ModelConfig) -> Attention:
    """Attention over whole sequences without a cache (training, teacher forcing): quadratic, differentiable.

    Each layer's output to the caller is its rotated queries, its rotated keys and its values.
    """

    def attend(
        layer: int | jax.Array,
        projected: Projected,
        rotation: Rotation,
        spec: AttentionSpec,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        queries, keys, values = projected.rotated(rotation)
        batch, rows, heads, dim = queries.shape
        wide = wide_dtype(queries.dtype)
        grouped = queries.reshape(batch, rows, config.num_kv_heads, config.group_size, dim)
        # jax.nn.dot_product_attention would compute its softmax in float32 even for float64 models
        scores = jnp.einsum("brkgd,bskd->bkgrs", grouped, keys, preferred_element_type=wide)
        seen = jnp.tril(jnp.ones((rows, rows), bool))
        if spec.window is not None:
            seen &= ~jnp.tril(seen, -spec.window)
        scores = jnp.where(seen[None, None, None], scores * jnp.asarray(spec.scale, wide), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        mixed = jnp.einsum("bkgrs,bskd->brkgd", weights, values)
        return mixed.reshape(batch, rows, heads, dim), (queries, keys, values), carry

    return attend
