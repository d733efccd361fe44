"""Bytes that a compiled program moves to and from a device's memory, counted from its text.

An operation reads its operands and writes its result, once each; a fusion is one operation. A slice or a gather reads
only the part, an update in place writes only the part, and arrays in on-chip memory (a layout with S(1)) cost nothing.
Our own kernels do not count: their reads depend on the text's length, and the roofline counts them.
"""

from __future__ import annotations

from itertools import islice

from tokenswift_jax.hardware.program_text import (
    Computation,
    Operation,
    array_bytes,
    arrays,
    branches_of,
    looked_through,
    on_chip,
    parsed,
    results,
    root,
    turns_of,
)

_MOVE_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "iota"}
_MOVE_NOTHING |= {"partition-id", "replica-id", "add-dependency", "custom-call"}
_TAKE_PART = {"dynamic-slice", "slice", "gather"}
_PUT_PART = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the part
_PRODUCTS = {"__cublas$gemm", "__cublas$lt$matmul", "__cublas$gemv"}


class _Program:
    def __init__(self, text: str) -> None:
        self.entry, self.computations = parsed(text)

    def moved(self, computation: str, outermost: bool = True) -> float:
        operations = self.computations[computation]
        return sum(self._of(operation, operations, outermost) for operation in operations.values())

    def outermost(self, computation: str) -> Operation | None:
        """The first loop of a computation or of those that it calls."""
        for operation in self.computations[computation].values():
            if operation.does == "while":
                return operation
            if operation.does in ("call", "async-start"):
                called = operation.called("to_apply" if operation.does == "call" else "calls")
                if (found := self.outermost(called)) is not None:
                    return found
        return None

    def _of(self, operation: Operation, operations: Computation, outermost: bool) -> float:
        does = operation.does
        if does == "while":
            # The loop over iterations counts once. A loop inside an iteration with an unknown number of turns runs
            # seldom: a selection of the draft cache, a row that its few highest scores do not decide.
            turns = turns_of(operation, self.computations)
            turns = int(outermost) if turns is None else turns
            return turns * self.moved(operation.called("body"), False)
        if does == "conditional":
            return max(self.moved(branch, outermost) for branch in branches_of(operation.rest))
        if does in ("call", "async-start"):
            called = operation.called("to_apply" if does == "call" else "calls")
            return self.moved(called, outermost)
        is_product = does == "custom-call" and any(f'"{name}"' in operation.rest for name in _PRODUCTS)
        if (does in _MOVE_NOTHING and not is_product) or does.endswith("-done"):
            return 0
        if does == "fusion":
            return self._of_fusion(operation, operations)
        return _alone(operation, operations)

    def _of_fusion(self, fusion: Operation, operations: Computation) -> float:
        inside = self.computations[fusion.called("calls")]
        total = 0.0
        for operation in inside.values():
            if operation.does == "parameter":
                given = operations.get(fusion.operands[_index(operation)])
                if given is None or not on_chip(given.shape):
                    total += self._read(operation.name, _bytes(operation.shape), inside)
        outside = iter(arrays(fusion.shape))
        for result in results(inside):
            shapes = list(islice(outside, len(arrays(result.shape))))  # several of a reduction of several arrays
            if len(shapes) > 1:
                total += _bytes("".join(shapes))
            elif not on_chip(shapes[0]):
                total += _written(result, inside)
        return total

    def _read(self, name: str, size: float, inside: Computation) -> float:
        """Bytes of a fusion's parameter that are read: all, or the parts that its users take of it."""
        parts = 0.0
        for user in (operation for operation in inside.values() if name in operation.operands):
            if user.does in _TAKE_PART and user.operands[0] == name:
                parts += _bytes(user.shape)
            elif user.does == "bitcast":
                parts += self._read(user.name, size, inside)
            elif user.does == "fusion":  # TPUs' fusions hold others
                nested = self.computations[user.called("calls")]
                given = (own for own in nested.values() if own.does == "parameter")
                for own in (own for own in given if user.operands[_index(own)] == name):
                    # A view alone is read by whoever reads the fusion.
                    viewed = _viewed(own.name, nested)
                    parts += self._read(user.name, size, inside) if viewed else self._read(own.name, size, nested)
            elif user.does not in _PUT_PART or user.operands[0] != name:
                return size
        return min(parts, size)


def moved_bytes(text: str) -> int:
    """Bytes that one iteration of a program's outermost loop moves, with the operations before and after it;
    our own kernels excepted. A loop with a known number of turns counts as often as it turns."""
    program = _Program(text)
    return round(program.moved(program.entry))


def iteration_bytes(text: str) -> int:
    """Bytes that one iteration of a program's outermost loop moves, without the operations before and after the loop;
    those of the whole program if it has no loop."""
    program = _Program(text)
    loop = program.outermost(program.entry)
    return moved_bytes(text) if loop is None else round(program.moved(loop.called("body"), False))


def _index(parameter: Operation) -> int:
    return int(parameter.rest.split(")")[0])


def _bytes(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple, that are not on the chip."""
    return sum(array_bytes(array) for array in arrays(shape) if not on_chip(array))


def _alone(operation: Operation, operations: Computation) -> float:
    """Bytes that an operation outside fusions moves."""
    given = [operations[name] for name in operation.operands if name in operations]
    if operation.does in _TAKE_PART:
        return (not on_chip(given[0].shape)) * _bytes(operation.shape) + _bytes(operation.shape)
    part = _PUT_PART.get(operation.does)
    if part is not None and part < len(given):
        return 2 * _bytes(given[part].shape)
    if operation.does in ("copy-start", "slice-start"):
        # (result, operand, context), or the other way round: the part is read there and written here.
        both = arrays(operation.shape)[:2]
        taken = min(map(array_bytes, both))
        return taken * sum(not on_chip(array) for array in both)
    made = operation.shape
    if operation.does.endswith("-start"):
        made = (arrays(made) * 2)[1]  # (operand, result, context), or a result alone
    return _bytes(made) + sum(_bytes(one.shape) for one in given)


def _viewed(name: str, inside: Computation) -> bool:
    """Whether a fusion's result is a view of its parameter."""
    return looked_through(root(inside), inside).name == name


def _written(result: Operation, inside: Computation) -> float:
    """Bytes of a fusion's result that are written: all, or the part that is put in its place."""
    result = looked_through(result, inside)
    if result.does == "parameter":
        return 0
    part = _PUT_PART.get(result.does)
    return _bytes(result.shape if part is None else inside[result.operands[part]].shape)
