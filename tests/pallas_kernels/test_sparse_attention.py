"""Sparse attention over named blocks against dense softmax attention in NumPy float64, the reference first."""

import jax
import numpy as np
import pytest
from sparse_cases import Shape, check, make, without_own_rows

from pallas_kernels.sparse_attention import sparse_attention


@pytest.mark.parametrize(
    "shape",
    [
        Shape(head_dim=16, window=40),
        Shape(group=1, rows=1, head_dim=64, block=16, table=20, cache_dtype="int8"),
        Shape(group=7, rows=3, head_dim=80, kv_heads=1, block=256, table=3),
        Shape(head_dim=96, dtype="bfloat16", cache_dtype="float8_e4m3fn", window=200),
    ],
    ids=str,
)
def test_reference(shape):
    """Also a cache in full use and one that is empty, unequal lengths and edges of blocks."""
    rng = np.random.default_rng(0)
    for lengths in ([1024, 0, 515], [1, 31, 33], [512, 511, 513]):
        check(make(rng, shape, lengths), shape)
    check(without_own_rows(make(rng, shape, [600, 0])), shape)


def test_blocks_must_divide_the_capacity():
    arguments = make(np.random.default_rng(2), Shape(head_dim=16), [3])
    with pytest.raises(ValueError, match="1024 slots is no multiple of blocks of 48"):
        jax.eval_shape(lambda a: sparse_attention(**a, layer=0, block_size=48, window=None), arguments)
