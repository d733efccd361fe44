"""Numba functions as XLA custom calls: they read XLA's call frames and share work with XLA's threads.

The offsets below are those of `xla/ffi/api/c_api.h` (jaxlib ships it in `jax.ffi.include_dir()`), counted in words of
8 bytes. XLA supports an old binary interface for at least a year. `cgutils`, `make_array` and `populate_array` are
internal to Numba, which has no other way to such arrays and calls; where a new version lacks them, XLA computes the
step (`pallas_kernels.cpu`).
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.np.arrayobj import make_array, populate_array

intrinsic: Any = _intrinsic  # Numba gives the function its first argument, the context
HANDLER = types.intp(types.intp)  # the address of a call frame; the address of an error, or 0
TASK = types.void(types.intp)  # the address of a piece of work
_METADATA = 1  # XLA_FFI_Extension_Metadata
_SCHEDULE, _THREADS = 17, 18  # XLA_FFI_ThreadPool_Schedule and _NumThreads in XLA_FFI_Api
# The words of a piece of work; its arguments follow.
NEXT, DONE, CHUNKS, USERS, ARGUMENTS = range(5)

malloc = types.ExternalFunction("malloc", types.intp(types.intp))
free = types.ExternalFunction("free", types.void(types.intp))
# Numba compiles for 2 s what it would say of arrays of other sizes, if a slice of one were set to one of another.
memcpy = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _call(context: Any, function: Any, argument: Any) -> Any:
    """Calls the C function at an address with a pointer; returns the pointer that it returns."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        word = given[0].type
        kind = ir.FunctionType(word, [word])
        return builder.call(builder.inttoptr(given[0], kind.as_pointer()), [given[1]])

    return types.intp(types.intp, types.intp), generate


@intrinsic
def add(context: Any, address: Any, value: Any) -> Any:
    """Adds to a word that several threads change; returns the sum before."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        word = given[0].type
        return builder.atomic_rmw("add", builder.inttoptr(given[0], word.as_pointer()), given[1], "seq_cst")

    return types.intp(types.intp, types.intp), generate


def symbol(name: str) -> Any:
    """A Numba function without arguments: the address of `name`, which `llvmlite.binding.add_symbol` defines.

    The address enters a program when it is loaded. Numba's cache of programs would keep a number.
    """

    @intrinsic
    def address(context: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, ___: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
            return builder.ptrtoint(cgutils.get_or_insert_function(builder.module, kind, name), ir.IntType(64))

        return types.intp(), generate

    return address


def _array_of(kind: Any) -> Any:
    """A Numba function: the one-dimensional array of `count` numbers of a type at an address.

    `numba.carray` also checks the array's shape; its messages alone take Numba 2 s to compile.
    """
    array = types.Array(kind, 1, "C")

    @intrinsic
    def made(context: Any, address: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, given: Any) -> Any:
            made = make_array(array)(context, builder)
            size = context.get_constant(types.intp, kind.bitwidth // 8)
            first = builder.inttoptr(given[0], made.data.type)
            populate_array(made, data=first, shape=[given[1]], strides=[size], itemsize=size, meminfo=None)
            return made._getvalue()

        return array(types.intp, types.intp), generate

    return made


words = _array_of(types.int64)
floats = _array_of(types.float32)
ints = _array_of(types.int32)
bools = _array_of(types.uint8)


@njit
def asks_for_version(frame):
    """Answers XLA's question for the interface's version; False if the frame asks for the work itself."""
    extension = words(frame, 2)[1]
    if extension == 0 or ints(extension, 3)[2] != _METADATA:
        return False
    metadata = words(extension, 4)[3]
    version = ints(metadata, 10)
    version[6], version[7], version[8] = 0, 1, 0  # major, minor, traits
    words(metadata, 6)[5] = 0  # no type of state
    return True


@njit(inline="always")
def arguments(frame):
    """The number of arguments."""
    return words(frame, 8)[7]


@njit(inline="always")
def argument(frame, index):
    """The address of an argument's description (`XLA_FFI_Buffer`)."""
    return words(words(frame, 10)[9], index + 1)[index]


@njit(inline="always")
def result(frame, index):
    """The address of a result's description."""
    return words(words(frame, 15)[14], index + 1)[index]


@njit(inline="always")
def data(buffer):
    """The address of a buffer's first number."""
    return words(buffer, 4)[3]


@njit(inline="always")
def size(buffer, axis):
    """A buffer's length along an axis."""
    return words(words(buffer, 6)[5], axis + 1)[axis]


@njit
def threads(frame):
    """The number of XLA's threads; 1 if it has none to lend."""
    memory = malloc(8 * 5)
    asked = words(memory, 5)
    asked[0], asked[1], asked[2], asked[3], asked[4] = 32, 0, words(frame, 4)[3], memory + 32, 1
    _call(words(words(frame, 3)[2], _THREADS + 1)[_THREADS], memory)
    count = max(asked[4], 1)
    free(memory)
    return count


@njit
def share(frame, work, task, helpers):
    """Asks XLA's threads to run `task` (the address of a `TASK`) on `work` beside the caller."""
    schedule = words(words(frame, 3)[2], _SCHEDULE + 1)[_SCHEDULE]
    memory = malloc(8 * 5)
    asked = words(memory, 5)
    asked[0], asked[1], asked[2], asked[3], asked[4] = 40, 0, words(frame, 4)[3], task, work
    for _ in range(helpers):
        add(work + 8 * USERS, 1)
        if _call(schedule, memory) != 0:
            add(work + 8 * USERS, -1)
    free(memory)


@njit
def take_part(work, task):
    """Runs `task` on `work` in this thread until no chunk is left to begin.

    Through the address: a direct call would have LLVM optimise the whole task again in every caller (3 s).
    """
    add(work + 8 * USERS, 1)
    _call(task, work)


@njit
def new_work(chunks, arguments):
    """A piece of work of `chunks` chunks with room for some words of arguments."""
    work = malloc(8 * (ARGUMENTS + arguments))
    head = words(work, ARGUMENTS)
    head[NEXT], head[DONE], head[CHUNKS], head[USERS] = 0, 0, chunks, 1
    return work


@njit
def wait(work):
    """Returns once every chunk is done.

    Without the yield, the caller takes the processor from the thread that it waits for, where others run too.
    """
    chunks, turns = words(work, ARGUMENTS)[CHUNKS], 0
    while add(work + 8 * DONE, 0) < chunks:
        turns += 1
        if turns > 100:
            _sched_yield()


@njit
def release(work):
    """Ends one user's part; the last one frees the memory."""
    if add(work + 8 * USERS, -1) == 1:
        free(work)


def define(name: str, function: Any) -> None:
    """Defines a symbol for `symbol`."""
    llvmlite.binding.add_symbol(name, function.address)


def register(name: str, handler: Any) -> None:
    """Makes a `HANDLER` known to XLA for CPU as a custom call."""
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.c_void_p(handler.address)), platform="cpu")
