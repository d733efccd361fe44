"""Dot products of one vector with the lines of a matrix, as Numba functions of addresses."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pallas_kernels.cpu import LANES, vectors
from pallas_kernels.cpu.calls import intrinsic

_NONE = ir.Constant(vectors.vector(LANES), None)


def _dots(builder: Any, x: Any, lines: list[Any], size: Any) -> Any:
    """The products of x [size] with up to 16 lines [size], one a lane; every lane adds in the same order."""
    sums = [cgutils.alloca_once_value(builder, _NONE) for _ in lines]
    with cgutils.for_range_slice(builder, size.type(0), size, size.type(LANES), size.type) as (d, _):
        part = vectors.load(builder, vectors.place(builder, x, d))
        for line, total in zip(lines, sums, strict=True):
            number = vectors.load(builder, vectors.place(builder, line, d))
            builder.store(vectors.fma(builder, number, part, builder.load(total)), total)
    return vectors.lane_sums(builder, [*map(builder.load, sums), *[_NONE] * (LANES - len(lines))])


@intrinsic
def dots(context: Any, x: Any, lines: Any, size: Any, scale: Any, out: Any):
    """out[i] = scale * x . lines[i] of 16 lines [16, size]; size is a multiple of 16."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        x, lines, size, scale, out = given
        each = [vectors.line(builder, lines, size, line) for line in range(LANES)]
        sums = _dots(builder, x, each, size)
        vectors.store(builder, builder.fmul(sums, vectors.splat(builder, scale)), out)
        return own.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.float32, types.intp), generate


@intrinsic
def dot(context: Any, x: Any, line: Any, size: Any):
    """x . line, as `dots` adds it; size is a multiple of 16."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        x, line, size = given
        return vectors.first(builder, _dots(builder, x, [line], size))

    return types.float32(types.intp, types.intp, types.intp), generate
