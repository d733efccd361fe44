"""The collectives of a compiled program's loop, with the bytes that each gives a device."""

import re

from tokenswift_jax.hardware.program_text import array_bytes, parsed

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


def in_loop(text: str) -> list[tuple[str, int]]:
    """(kind, bytes) of every collective in the body of the outermost loop, and in all that the body calls."""
    entry, computations = parsed(text)

    def called(operation):
        return [name for name in re.findall(r"%?([\w.\-]+)", operation.rest) if name in computations]

    def reach(name, seen):
        if name not in seen:
            seen.add(name)
            for operation in computations[name].values():
                for inner in called(operation):
                    reach(inner, seen)
        return seen

    everywhere = reach(entry, set())
    loops = [one for name in everywhere for one in computations[name].values() if one.does == "while"]
    bodies = [reach(loop.called("body"), set()) for loop in loops]
    found = []
    for name in max(bodies, key=len):
        for operation in computations[name].values():
            kind = operation.does.removesuffix("-start")
            if kind in KINDS:
                found.append((kind, int(array_bytes(operation.shape))))
    return sorted(found)
