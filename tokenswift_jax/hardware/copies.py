"""Large arrays that a compiled program allocates, from its text: results that are no update in place."""

from __future__ import annotations

import re

from tokenswift_jax.hardware.program_text import Computation, array_bytes, arrays, on_chip, parsed, root

# Parameters, elements of tuples and views are other buffers; the rest of these operations write to an operand.
_MAKE_NOTHING = {"bitcast", "get-tuple-element", "parameter", "tuple", "while", "conditional", "opt-barrier"}
_IN_PLACE = {"dynamic-update-slice", "scatter"}


def large_arrays(text: str, least: int) -> list[str]:
    """Operations outside fusions that make an array of at least so many bytes, as "operation type[shape]".

    A fusion counts as its last operation; one that updates in place allocates nothing. Asynchronous copies into on-chip
    memory are reads.
    """
    _, computations = parsed(text)
    fused = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    found = []
    for operation in (o for name, inside in computations.items() if name not in fused for o in inside.values()):
        if operation.shape.startswith("(") or operation.does in _MAKE_NOTHING or operation.does.endswith("-done"):
            continue
        if on_chip(operation.shape) or array_bytes(operation.shape) < least:
            continue
        last = _last(computations[operation.called("calls")]) if operation.does == "fusion" else operation.does
        if last not in _IN_PLACE:
            found.append(f"{last} {arrays(operation.shape)[0].split('{')[0]}")
    return sorted(found)


def _last(inside: Computation) -> str:
    """The operation that gives a fusion's result, views and ends of copies looked through."""
    made = root(inside)
    while made.does in ("bitcast", "copy-done") and made.operands[0] in inside:
        made = inside[made.operands[0]]
    return made.does
