"""A compiled program from its text: computations of operations, their arrays, and the arrays behind views."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_SIZES |= {"f64": 8, "s64": 8, "u64": 8}  # and 4 of all others
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", re.MULTILINE)
_COMPUTATION = re.compile(
    r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}(?:$|, execution_thread)", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Operation:
    """One line of a computation.

    Attributes:
      name: of its value.
      shape: of its result as the text has it, layout included; of several in brackets.
      does: the operation.
      operands: names of values.
      rest: operands and attributes as the text has them.
      is_root: its value is the computation's.
    """

    name: str
    shape: str
    does: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, kind: str) -> str:
        """The computation that an attribute ("calls", "body", "to_apply") names."""
        return re.findall(rf"\b{kind}=%?([\w.\-]+)", self.rest)[0]


Computation = dict[str, Operation]


def parsed(text: str) -> tuple[str, dict[str, Computation]]:
    """The name of the outermost computation, and all by name.

    Raises:
      ValueError: a computation does not end with its result: it is cut off.
    """
    entry, computations = "", {}
    for is_entry, name, body in _COMPUTATION.findall(text):
        computations[name] = {operation.name: operation for operation in map(_operation, _LINE.findall(body))}
        entry = name if is_entry else entry
        if not any(operation.is_root for operation in computations[name].values()):
            raise ValueError(f"computation {name} of the compiled program has no result; its text reads otherwise")
    return entry, computations


def _operation(found: tuple[str, str, str, str, str]) -> Operation:
    root, name, shape, does, rest = found
    operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
    return Operation(name, shape, does, operands, rest, bool(root))


def arrays(shape: str) -> list[str]:
    """An array's shape alone, or those of a tuple."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)


def array_bytes(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple, in any memory."""
    total = 0.0
    for array in arrays(shape):
        kind, sizes = array.split("]")[0].split("[")
        total += _SIZES.get(kind, 4) * prod(int(size) for size in sizes.split(",") if size)
    return total


def on_chip(array: str) -> bool:
    """Whether an array is in a TPU's on-chip memory."""
    return "S(1)" in array


def root(inside: Computation) -> Operation:
    """The operation whose value is the computation's."""
    (operation,) = [operation for operation in inside.values() if operation.is_root]
    return operation


def results(inside: Computation) -> list[Operation]:
    """The results of a computation: the elements of a tuple, or the one value."""
    last = root(inside)
    return [inside[name] for name in last.operands] if last.does == "tuple" else [last]


def looked_through(result: Operation, inside: Computation) -> Operation:
    """The operation that a view shows."""
    while result.does == "bitcast" and result.operands[0] in inside:
        result = inside[result.operands[0]]
    return result


def branches_of(conditional: str) -> list[str]:
    """The computations that a conditional may run, a false condition's before a true one's."""
    several = re.search(r"branch_computations=\{([^}]*)\}", conditional)
    if several:
        return re.findall(r"%?([\w.\-]+)", several[1])
    return [re.findall(rf"\b{which}_computation=%?([\w.\-]+)", conditional)[0] for which in ("false", "true")]


def turns_of(loop: Operation, computations: dict[str, Computation]) -> int | None:
    """How often a loop turns; None where XLA does not know."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    # XLA for TPU writes no such attribute. JAX's loops of constant length count from zero to a constant.
    condition = computations[loop.called("condition")]
    last = root(condition)
    if last.does != "compare" or "direction=LT" not in last.rest:
        return None
    limit = condition[last.operands[1]]
    return int(limit.rest.split(")")[0]) if limit.does == "constant" else None
