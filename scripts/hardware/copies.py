"""Large arrays that a compiled program makes anew: what its text says beside updates in place."""

from __future__ import annotations

import re
from math import prod

# Parameters, elements of tuples and views are somebody else's buffer; the rest writes one it was given.
_MAKE_NOTHING = {"bitcast", "get-tuple-element", "parameter", "tuple", "while", "conditional", "opt-barrier"}
_IN_PLACE = {"dynamic-update-slice", "scatter"}
_VALUE = r"= (\w+)\[([\d,]+)\](\{[^}]*\})? ([\w\-]+)\((.*)"  # type, shape, layout, operation, the rest
_NARROW = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


def array_bytes(entry: str) -> int:
    """Bytes of an array as `large_arrays` gives it."""
    kind, shape = re.findall(r"(\w+)\[([\d,]+)\]", entry)[0]
    return _NARROW.get(kind, 4) * prod(map(int, shape.split(",")))


def large_arrays(text: str, least: int) -> list[str]:
    """Operations outside fusions that make an array of at least so many bytes, as "operation type[shape]".

    A fusion stands for its last operation; one that updates in place makes nothing. Asynchronous copies into on-chip
    memory (a layout with S(1)) are reads.
    """
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    fused = set(re.findall(r"calls=%?([\w.\-]+)", text))
    fused |= set(re.findall(r"to_apply=%?([\w.\-]+)", text))
    found = []
    for name, body in computations.items():
        if name in fused:
            continue
        for kind, shape, layout, does, rest in re.findall(_VALUE, body):
            size = _NARROW.get(kind, 4) * prod(map(int, shape.split(",")))
            if size < least or does in _MAKE_NOTHING or "S(1)" in layout:
                continue
            called = re.search(r"calls=%?([\w.\-]+)", rest)
            last = _last(computations[called[1]]) if does == "fusion" and called else does
            if last not in _IN_PLACE and not does.endswith("-done"):
                found.append(f"{last} {kind}[{shape}]")
    return sorted(found)


def _last(body: str) -> str:
    """The operation that gives a fusion's result, views looked through."""
    made = {value: (does, of) for value, does, of in re.findall(r"%?([\w.\-]+) = \S+ ([\w\-]+)\(%?([\w.\-]*)", body)}
    root = re.search(r"ROOT %?([\w.\-]+) =", body)
    does, of = made.get(root[1], ("tuple", "")) if root else ("tuple", "")
    while does in ("bitcast", "copy-done") and of in made:
        does, of = made[of]
    return does
