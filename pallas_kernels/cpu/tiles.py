"""Tiles of a product whose sums stay in registers, as Numba functions of addresses; they add in the order of `product`.

A tile reads a weight for all its rows, and multiplies at most of the processor's speed. It reads short pieces of many
lines, which memory gives more slowly than the long pieces of a sweep.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils

from pallas_kernels.cpu import LANES, vectors
from pallas_kernels.cpu.calls import intrinsic

# Rows and vectors of columns whose sums fit the registers: 32 of 512 bits, or half as many numbers.
_MOST, COLUMNS = (8, 3) if get_host_cpu_features().get("avx512f", False) else (4, 1)
SQUARE = 4  # rows of the smaller tile; rows and lines of a tile of `lines`
FETCHED = 2  # lines that a tile of `lines` has fetched: half of its own number, so that 8 rows fetch each once
_NONE = ir.Constant(vectors.vector(LANES), None)


def _tile(rows: int, columns: int) -> Any:
    """y[r, :] = x[r, :count] @ w[:count, :] of `rows` rows and `columns` vectors, in the order of the inputs.

    Arguments are addresses, and strides counted in floats.
    """

    @intrinsic
    def tile(context: Any, w: Any, w_stride: Any, y: Any, y_stride: Any, x: Any, x_stride: Any, count: Any):
        def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
            w, w_stride, y, y_stride, x, x_stride, count = given
            sums = [[cgutils.alloca_once_value(builder, _NONE) for _ in range(columns)] for _ in range(rows)]
            inputs = [vectors.line(builder, x, x_stride, row) for row in range(rows)]
            with cgutils.for_range_slice(builder, count.type(0), count, count.type(1), count.type) as (k, _):
                line = vectors.place(builder, w, builder.mul(w_stride, k))
                places = [vectors.place(builder, line, LANES * column) for column in range(columns)]
                weights = [vectors.load(builder, at) for at in places]
                for at in places:  # those of the next tile
                    vectors.prefetch(builder, vectors.place(builder, at, LANES * columns))
                for own_sums, base in zip(sums, inputs, strict=True):
                    number = vectors.splat(builder, vectors.load(builder, vectors.place(builder, base, k), 1))
                    for weight, total in zip(weights, own_sums, strict=True):
                        builder.store(vectors.fma(builder, weight, number, builder.load(total)), total)
            for row, own_sums in enumerate(sums):
                base = vectors.line(builder, y, y_stride, row)
                for column, total in enumerate(own_sums):
                    vectors.store(builder, builder.load(total), vectors.place(builder, base, LANES * column))
            return own.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return tile


def _over_rows(columns: int) -> Any:
    """y = x[:, :count] @ w[:count] of `columns` vectors and of `rows` rows, a multiple of SQUARE."""
    tall, low = _tile(_MOST, columns), _tile(SQUARE, columns)

    @njit
    def over_rows(w, w_stride, y, y_stride, x, x_stride, count, rows):
        row = 0
        while row < rows:
            xs, ys = x + 4 * row * x_stride, y + 4 * row * y_stride
            if row + _MOST <= rows:
                tall(w, w_stride, ys, y_stride, xs, x_stride, count)
                row += _MOST
            else:
                low(w, w_stride, ys, y_stride, xs, x_stride, count)
                row += SQUARE

    return over_rows


_several, _single = _over_rows(COLUMNS), _over_rows(1)


@njit
def columns_of(w, w_stride, y, y_stride, x, x_stride, count, rows, columns):
    """y = x[:, :count] @ w[:count] of `columns` vectors; rows is a multiple of SQUARE."""
    whole = columns // COLUMNS * COLUMNS
    for column in range(0, whole, COLUMNS):
        at = 4 * LANES * column
        _several(w + at, w_stride, y + at, y_stride, x, x_stride, count, rows)
    for column in range(whole, columns):
        at = 4 * LANES * column
        _single(w + at, w_stride, y + at, y_stride, x, x_stride, count, rows)


@intrinsic
def lines(context: Any, x: Any, w: Any, size: Any, y: Any, y_stride: Any, later: Any):
    """y[r, l] = x[r] . w[l] of SQUARE rows and lines [size], as `dots` adds them; size is a multiple of 16.

    The processor is asked to fetch FETCHED lines from `later` on.
    """

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        x, w, size, y, y_stride, later = given
        each = range(SQUARE)
        sums = [[cgutils.alloca_once_value(builder, _NONE) for _ in each] for _ in each]
        ahead = [vectors.line(builder, later, size, index) for index in range(FETCHED)]
        rows, others = ([vectors.line(builder, base, size, index) for index in each] for base in (x, w))
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(LANES), size.type) as (d, _):
            numbers = [vectors.load(builder, vectors.place(builder, line, d)) for line in others]
            for line in ahead:
                vectors.prefetch(builder, vectors.place(builder, line, d))
            for row, own_sums in zip(rows, sums, strict=True):
                part = vectors.load(builder, vectors.place(builder, row, d))
                for number, total in zip(numbers, own_sums, strict=True):
                    builder.store(vectors.fma(builder, number, part, builder.load(total)), total)
        added = vectors.lane_sums(builder, [builder.load(total) for total in chain.from_iterable(sums)])
        for row in each:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), SQUARE), [SQUARE * row + line for line in each])
            vectors.store(builder, builder.shuffle_vector(added, added, mask), vectors.line(builder, y, y_stride, row))
        return own.get_dummy_value()

    return types.void(*[types.intp] * 6), generate
