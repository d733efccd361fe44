"""Attention on CPU sums a sequence in the same order in every batch: its results are equal bit for bit."""

from functools import partial

import jax
import numpy as np
import pytest
from attention_cases import LAYER, Shape, make, quantised, sequence

from pallas_kernels.tree_attention import tree_attention

# Alone, each ends in another place of a block of 256, 512 or 1,024 slots; together they share none of those places.
LENGTHS = [1500, 4096, 40, 3001]


@partial(jax.jit, static_argnames="window")
def run(arguments, window):
    return tree_attention(**arguments, layer=LAYER, window=window, return_lse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "group"), [(1, 3), (5, 3), (40, 2)])
@pytest.mark.parametrize("window", [None, 1100])
def test_a_sequence_does_not_notice_its_neighbours(dtype, rows, group, window):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        arguments = make(rng, Shape(group=group, rows=rows, dtype=dtype), LENGTHS)
        together = run(arguments, window)
        for row in range(len(LENGTHS)):
            for part, single in zip(together, run(sequence(arguments, row), window), strict=True):
                np.testing.assert_array_equal(part[row], single[0])


def test_nor_with_a_cache_of_small_numbers():
    rng = np.random.default_rng(1)
    arguments = quantised(rng, make(rng, Shape(group=3), LENGTHS), "int8")
    together = run(arguments, None)[0]
    for row in range(len(LENGTHS)):
        np.testing.assert_array_equal(together[row], run(sequence(arguments, row), None)[0][0])
