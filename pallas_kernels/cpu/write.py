"""Rows written into a stack in its place, for all texts of a batch in one call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numba import cfunc, njit

from pallas_kernels.cpu.calls import HANDLER, argument, asks_for_version, data, ints, memcpy, register, result, size


@njit
def _write(frame):
    stack, new, starts = result(frame, 0), argument(frame, 1), argument(frame, 3)
    first = ints(data(argument(frame, 2)), 1)[0]
    layers, batch, heads, rows, dim = size(new, 0), size(new, 1), size(new, 2), size(new, 3), size(new, 4)
    slots = size(stack, 3)
    at = ints(data(starts), batch)
    for layer in range(layers):
        for text in range(batch):
            start = min(max(at[text], 0), slots - rows)
            for head in range(heads):
                source = ((layer * batch + text) * heads + head) * rows * dim
                target = (((first + layer) * batch + text) * heads + head) * slots * dim + start * dim
                memcpy(data(stack) + 4 * target, data(new) + 4 * source, 4 * rows * dim)


@cfunc(HANDLER, cache=True)
def _handler(frame):
    if not asks_for_version(frame):
        _write(frame)
    return 0


register("tokenswift_write", _handler)


def write_rows(stack: jax.Array, rows: jax.Array, layer: int | jax.Array, starts: jax.Array) -> jax.Array:
    """The stack with the rows in their slots, in the stack's memory, where `cpu.serves` it.

    Args:
      stack: float32 [layers, batch, kv_heads, slots, head_dim].
      rows: float32 [layers', batch, kv_heads, rows, head_dim], for the layers from `layer` on.
      layer: the first layer.
      starts: int32 [batch], the first slot of each text; as in `lax.dynamic_update_slice`, all rows find room.
    """
    shape = jax.ShapeDtypeStruct(stack.shape, stack.dtype)
    call = jax.ffi.ffi_call("tokenswift_write", shape, input_output_aliases={0: 0}, vmap_method="sequential")
    return call(stack, rows, jnp.asarray(layer, jnp.int32), starts)
