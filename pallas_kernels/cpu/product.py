"""Products of a few rows with a matrix: every weight is read once, by all of XLA's threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numba import cfunc, njit, types
from numba.core import cgutils

from pallas_kernels.cpu import LANES, vectors
from pallas_kernels.cpu.calls import (
    ARGUMENTS,
    CHUNKS,
    DONE,
    HANDLER,
    NEXT,
    TASK,
    add,
    argument,
    arguments,
    asks_for_version,
    data,
    define,
    floats,
    free,
    intrinsic,
    malloc,
    memcpy,
    new_work,
    register,
    release,
    result,
    share,
    size,
    symbol,
    take_part,
    threads,
    wait,
    words,
)
from pallas_kernels.cpu.dots import dot, dots
from pallas_kernels.cpu.tiles import COLUMNS, FETCHED, SQUARE, columns_of, lines

DEEP = 8  # lines of a matrix that a sweep reads together
AHEAD = 8  # how many lines before their use the processor is asked to fetch them
PARTS = 8  # of a matrix's lines, summed apart; they decide the order of the sums
WIDE = 2048  # columns that a thread sums at a time, so that the second-level cache contains their sums
LITTLE = 2**19  # numbers of a matrix that a cache contains from step to step: tiles suit it better than sweeps
TILE = LANES * COLUMNS  # columns of a tile
BROAD = 8192  # a matrix with more columns is divided by columns, since the sums of its parts would need much memory


def _sweep(rows: int, deep: int, lanes: int, ahead: int) -> Any:
    """y[r, j] += x[r, :deep] @ w[:deep, j] of `rows` rows for j = begin .. end-1, in the order of the inputs.

    Arguments are addresses, and strides counted in floats. `ahead`: how many of the matrix's rows further on the
    processor is asked to fetch; 0 for none.
    """

    @intrinsic
    def sweep(context: Any, w: Any, w_stride: Any, y: Any, y_stride: Any, x: Any, x_stride: Any, begin: Any, end: Any):
        def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
            w, w_stride, y, y_stride, x, x_stride, begin, end = given

            line = partial(vectors.line, builder)
            inputs = [line(w, w_stride, k) for k in range(deep)]
            later = [line(w, w_stride, k + ahead) for k in range(deep)] if ahead else []
            outputs = [line(y, y_stride, row) for row in range(rows)]
            numbers = []
            for row in range(rows):
                places = [vectors.place(builder, line(x, x_stride, row), k) for k in range(deep)]
                numbers.append([vectors.splat(builder, vectors.load(builder, at, 1), lanes) for at in places])
            with cgutils.for_range_slice(builder, begin, end, begin.type(lanes), begin.type) as (j, _):
                weights = [vectors.load(builder, vectors.place(builder, base, j), lanes) for base in inputs]
                for base in later:
                    vectors.prefetch(builder, vectors.place(builder, base, j))
                for row, base in enumerate(outputs):
                    at = vectors.place(builder, base, j)
                    sums = vectors.load(builder, at, lanes)
                    for weight, number in zip(weights, numbers[row], strict=True):
                        sums = vectors.fma(builder, weight, number, sums)
                    vectors.store(builder, sums, at)
            return own.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return sweep


@intrinsic
def _add(context: Any, numbers: Any, sums: Any, count: Any):
    """sums += numbers, `count` floats each."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        numbers, sums, count = given
        whole = builder.and_(count, count.type(-LANES))
        for begin, end, lanes in ((count.type(0), whole, LANES), (whole, count, 1)):
            with cgutils.for_range_slice(builder, begin, end, count.type(lanes), count.type) as (i, _):
                at = vectors.place(builder, sums, i)
                number = vectors.load(builder, vectors.place(builder, numbers, i), lanes)
                vectors.store(builder, builder.fadd(vectors.load(builder, at, lanes), number), at)
        return own.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


# Numba compiles a function once more for arguments that are literals.
_NO, _YES = np.int64(0), np.int64(1)
# More rows at a time read the sums from the first-level cache less often: it takes longer than the multiplications.
_eight, _four, _two, _one = (_sweep(rows, DEEP, LANES, AHEAD) for rows in (8, 4, 2, 1))
_shallow, _narrow = _sweep(1, 1, LANES, 0), _sweep(1, 1, 1, 0)


@njit
def _part(x, rows, inputs, w, outputs, y, stride, begin, end, left, right):
    """Columns left .. right-1 of x[:, begin:end] w[begin:end] into y, whose lines are `stride` floats apart."""
    tall = rows // SQUARE * SQUARE if _tall(rows, inputs, outputs) else 0
    vectors = (right - left) // LANES
    whole = left + vectors * LANES
    for row in range(rows):
        begun = whole - left if row < tall else 0  # tiles write the rest
        floats(y + 4 * (row * stride + begun), right - left - begun)[:] = 0
    if tall:
        at = w + 4 * (begin * outputs + left)
        columns_of(at, outputs, y, stride, x + 4 * begin, inputs, end - begin, tall, vectors)
    own = y + 4 * tall * stride
    _sweeps(x + 4 * tall * inputs, rows - tall, inputs, w, outputs, own, stride, begin, end, left, whole)
    if right > whole:
        _last(x, rows, inputs, w, outputs, y + 4 * (whole - left), stride, begin, end, whole, right)


@njit
def _last(x, rows, inputs, w, outputs, y, stride, begin, end, left, right):
    """Adds to the columns left .. right-1, fewer than a vector."""
    for row in range(rows):
        ys = y + 4 * row * stride
        for k in range(begin, end):
            at = w + 4 * (k * outputs + left)
            _narrow(at, outputs, ys, stride, x + 4 * (row * inputs + k), inputs, 0, right - left)


@njit
def _parts(x, rows, inputs, w, outputs, y, left, right):
    """Columns left .. right-1 of y [rows, outputs] = x [rows, inputs] w, one part after the other."""
    stride, depth = right - left, _depth(inputs, outputs)
    _part(x, rows, inputs, w, outputs, y + 4 * left, outputs, _NO, min(depth, inputs), left, right)
    sums = malloc(4 * rows * stride)
    for begin in range(depth, inputs, depth):
        _part(x, rows, inputs, w, outputs, sums, stride, begin, min(begin + depth, inputs), left, right)
        for row in range(rows):
            _add(sums + 4 * row * stride, y + 4 * (row * outputs + left), stride)
    free(sums)


@njit
def _sweeps(x, rows, inputs, w, outputs, y, stride, begin, end, left, right):
    """Adds to the columns left .. right-1, whole vectors."""
    deep = begin + (end - begin) // DEEP * DEEP
    for a in range(left, right, WIDE):
        width = min(WIDE, right - a)
        for k in range(begin, deep, DEEP):
            ws, row = w + 4 * (k * outputs + a), 0
            while row < rows:
                xs, ys = x + 4 * (row * inputs + k), y + 4 * (row * stride + a - left)
                if row + 8 <= rows:
                    _eight(ws, outputs, ys, stride, xs, inputs, 0, width)
                    row += 8
                elif row + 4 <= rows:
                    _four(ws, outputs, ys, stride, xs, inputs, 0, width)
                    row += 4
                elif row + 2 <= rows:
                    _two(ws, outputs, ys, stride, xs, inputs, 0, width)
                    row += 2
                else:
                    _one(ws, outputs, ys, stride, xs, inputs, 0, width)
                    row += 1
    for row in range(rows):
        ys = y + 4 * row * stride
        for k in range(deep, end):
            at = w + 4 * (k * outputs + left)
            _shallow(at, outputs, ys, stride, x + 4 * (row * inputs + k), inputs, 0, right - left)


@njit
def _by_line(x, rows, inputs, w, outputs, y, begin, end):
    """Columns begin .. end-1 of y [rows, outputs] = x [rows, inputs] w.T, w [outputs, inputs]."""
    whole = begin + (end - begin) // LANES * LANES
    together = rows // SQUARE * SQUARE
    for j in range(begin, whole, LANES):
        for row in range(0, together, SQUARE):
            for line in range(j, j + LANES, SQUARE):
                ys = y + 4 * (row * outputs + line)
                later = w + 4 * (line + LANES + row // SQUARE % 2 * FETCHED) * inputs
                lines(x + 4 * row * inputs, w + 4 * line * inputs, inputs, ys, outputs, later)
        for row in range(together, rows):
            dots(x + 4 * row * inputs, w + 4 * j * inputs, inputs, np.float32(1), y + 4 * (row * outputs + j))
    for row in range(rows):
        sums = floats(y + 4 * row * outputs, outputs)
        for j in range(whole, end):
            sums[j] = dot(x + 4 * row * inputs, w + 4 * j * inputs, inputs)


@njit
def _tall(rows, inputs, outputs):
    """Whether tiles suit a product better than sweeps."""
    return rows > 8 or (rows >= SQUARE and inputs * outputs <= LITTLE)


@njit
def _by_parts(rows, inputs, outputs):
    """Whether threads take parts of a matrix's lines, and not columns.

    Threads read long pieces of the parts. But each part has sums of its own for all columns: many rows of a matrix that
    is wide or small lose more by these than they gain by the pieces.
    """
    wide = outputs > inputs or inputs * outputs <= LITTLE
    return outputs <= BROAD and not (rows > 8 and wide)


@njit
def _depth(inputs, outputs):
    """The lines of a part. The parts decide the order of the sums, so neither rows nor threads count."""
    return inputs if outputs > BROAD else (inputs + PARTS * DEEP - 1) // (PARTS * DEEP) * DEEP


@cfunc(TASK, cache=True)
def _task(work):
    head = words(work, ARGUMENTS + 6)
    x, rows, inputs, by_line, matrices = head[ARGUMENTS : ARGUMENTS + 5]
    while True:
        chunk = add(work + 8 * NEXT, 1)
        if chunk >= head[CHUNKS]:
            break
        at, before = work + 8 * (ARGUMENTS + 5), 0
        for _ in range(matrices):
            w, y, outputs, step, chunks = words(at, 5)
            if chunk < before + chunks:
                begin = (chunk - before) * step
                end = min(begin + step, outputs)
                if by_line:
                    _by_line(x, rows, inputs, w, outputs, y, begin, end)
                elif not _by_parts(rows, inputs, outputs):
                    _parts(x, rows, inputs, w, outputs, y, begin, end)
                else:
                    own = y + 4 * (chunk - before) * rows * outputs
                    _part(x, rows, inputs, w, outputs, own, outputs, begin, min(begin + step, inputs), _NO, outputs)
                break
            at, before = at + 40, before + chunks
        add(work + 8 * DONE, 1)
    release(work)


define("tokenswift_product", _task)
_task_address = symbol("tokenswift_product")


@njit
def _products(frame, by_line):
    x, matrices = argument(frame, 0), arguments(frame) - 1
    rows, inputs = size(x, 0), size(x, 1)
    work = new_work(0, 5 + 5 * matrices)
    head = words(work, ARGUMENTS + 5)
    head[ARGUMENTS], head[ARGUMENTS + 1], head[ARGUMENTS + 2] = data(x), rows, inputs
    head[ARGUMENTS + 3], head[ARGUMENTS + 4] = by_line, matrices
    total = 0
    for index in range(matrices):
        y = result(frame, index)
        outputs, place = size(y, 1), data(y)
        if by_line:
            step = min(max((outputs // 64 + LANES - 1) // LANES, 4), 64) * LANES
            chunks = (outputs + step - 1) // step
        elif not _by_parts(rows, inputs, outputs):
            tiles = min(max(outputs // 16 // TILE, 1), 4)
            step = tiles * TILE if _tall(rows, inputs, outputs) else WIDE
            chunks = (outputs + step - 1) // step
        else:
            step = _depth(inputs, outputs)
            chunks = (inputs + step - 1) // step
            place = malloc(4 * chunks * rows * outputs)
        own = words(work + 8 * (ARGUMENTS + 5 + 5 * index), 5)
        own[0], own[1], own[2], own[3], own[4] = data(argument(frame, index + 1)), place, outputs, step, chunks
        total += chunks
    head[CHUNKS] = total
    share(frame, work, _task_address(), min(threads(frame), total) - 1)
    take_part(work, _task_address())
    wait(work)
    for index in range(matrices):
        own = words(work + 8 * (ARGUMENTS + 5 + 5 * index), 5)
        if not by_line and _by_parts(rows, inputs, own[2]):
            count = rows * own[2]
            sums = data(result(frame, index))
            memcpy(sums, own[1], 4 * count)
            for part in range(1, own[4]):
                _add(own[1] + 4 * part * count, sums, count)
            free(own[1])
    release(work)


@cfunc(HANDLER, cache=True)
def _by_columns(frame):
    if not asks_for_version(frame):
        _products(frame, _NO)
    return 0


@cfunc(HANDLER, cache=True)
def _by_lines(frame):
    if not asks_for_version(frame):
        _products(frame, _YES)
    return 0


register("tokenswift_products", _by_columns)
register("tokenswift_products_of_lines", _by_lines)


def products(x: jax.Array, matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """x [rows, inputs] w of every matrix w [inputs, outputs], float32; a row's sums depend on that row alone."""
    return _call("tokenswift_products", x, matrices, [w.shape[1] for w in matrices])


def product_of_lines(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [rows, inputs] w.T of w [outputs, inputs], float32, inputs a multiple of 16; as `products`."""
    return _call("tokenswift_products_of_lines", x, [w], [w.shape[0]])[0]


def _call(name: str, x: jax.Array, matrices: Sequence[jax.Array], outputs: Sequence[int]) -> list[jax.Array]:
    shapes = [jax.ShapeDtypeStruct((x.shape[0], count), jnp.float32) for count in outputs]
    return list(jax.ffi.ffi_call(name, shapes, vmap_method="sequential")(x, *matrices))
