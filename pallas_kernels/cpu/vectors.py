"""Float32 vectors for Numba functions: LLVM loads, stores and fused multiply-adds at addresses.

Numba has no vector type, and LLVM's own vectoriser gives up where several arrays may overlap. So a function that must
be fast makes its inner step with LLVM's builder (`numba.extending.intrinsic`) from the parts below.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from pallas_kernels.cpu import LANES

FLOAT = ir.FloatType()
_INDEX = ir.IntType(32)


def vector(lanes: int) -> Any:
    """The LLVM type of `lanes` floats; a plain float for one."""
    return FLOAT if lanes == 1 else ir.VectorType(FLOAT, lanes)


def place(builder: Any, base: Any, index: Any) -> Any:
    """The address of float `index` (an LLVM integer or a Python one) after the address `base`."""
    if isinstance(index, int):
        index = ir.Constant(base.type, index)
    return builder.add(base, builder.shl(index, ir.Constant(base.type, 2)))


def line(builder: Any, base: Any, stride: Any, index: int) -> Any:
    """The address of a matrix's line of that index; `stride`, an LLVM integer, is counted in floats."""
    return place(builder, base, builder.mul(stride, stride.type(index)))


def load(builder: Any, address: Any, lanes: int = LANES) -> Any:
    """Reads floats at an address that is a multiple of 4."""
    value = builder.load(builder.inttoptr(address, vector(lanes).as_pointer()))
    value.align = 4
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    """Writes floats at an address that is a multiple of 4."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def splat(builder: Any, number: Any, lanes: int = LANES) -> Any:
    """One float in every lane."""
    if lanes == 1:
        return number
    undefined = ir.Constant(vector(lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INDEX, lanes), [0] * lanes))


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, by lane."""
    suffix = "f32" if a.type == FLOAT else f"v{a.type.count}f32"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{suffix}"), [a, b, c])


def first(builder: Any, value: Any) -> Any:
    """The first lane."""
    return builder.extract_element(value, _INDEX(0))


def lane_sums(builder: Any, values: list[Any]) -> Any:
    """One vector: the sum of the lanes of each of 16 vectors, all in the same order."""
    width = 1  # each vector has the sums of `width` of the values, in 16 / width parts
    while len(values) > 1:
        masks = []
        for odd in (0, 1):
            order = []
            for lane in range(LANES):
                value, part = lane % (2 * width), 2 * (lane // (2 * width)) + odd
                order.append(part * width + value % width + (LANES if value >= width else 0))
            masks.append(ir.Constant(ir.VectorType(_INDEX, LANES), order))
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks)) for a, b in pairs]
        width *= 2
    return values[0]


def prefetch(builder: Any, address: Any) -> None:
    """Asks the processor to bring a line of memory near; any address is allowed."""
    line = builder.inttoptr(address, cgutils.voidptr_t)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INDEX, _INDEX, _INDEX])
    near = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(near, [line, *(ir.Constant(_INDEX, x) for x in (0, 3, 1))])
