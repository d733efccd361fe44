"""The collectives of a compiled program, with the bytes and the devices of each, read from its text."""

from __future__ import annotations

import re
from collections import Counter
from math import prod

from tokenswift_jax.hardware.program_text import Operation, array_bytes, arrays, branches_of, parsed, turns_of
from tokenswift_jax.parallel.step_time import Collective

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
_CALLS = r"(?:calls|body|condition|to_apply|true_computation|false_computation|\w+_computations)=(\{[^}]*\}|%?[\w.\-]+)"


def collectives_of(text: str) -> list[Collective]:
    """The collectives of one iteration of a program's largest loop of unknown length; of a program without one, of all.

    A loop of known length counts as often as it turns, one of unknown length inside the iteration once, and of branches
    the one with the most bytes.

    Args:
      text: of a compiled program, as `compiled.as_text()` returns it.
    """
    return _Program(text).iteration()


class _Program:
    def __init__(self, text: str) -> None:
        self.entry, self.computations = parsed(text)
        partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self.devices = int(partitions[1]) if partitions else 1

    def iteration(self) -> list[Collective]:
        bodies = [
            operation.called("body")
            for name in self._reached(self.entry)
            for operation in self.computations[name].values()
            if operation.does == "while" and turns_of(operation, self.computations) is None
        ]
        start = max(bodies, key=lambda body: len(self._reached(body)), default=self.entry)
        return [Collective(*key, count) for key, count in sorted(self._found(start).items())]

    def _found(self, name: str) -> Counter[tuple[str, int, int]]:
        total: Counter[tuple[str, int, int]] = Counter()
        for operation in self.computations[name].values():
            kind = operation.does.removesuffix("-start")
            if kind in KINDS:
                total[kind, _bytes(operation, kind), self._group(operation)] += 1
            elif operation.does == "while":
                turns = turns_of(operation, self.computations)
                for each, count in self._found(operation.called("body")).items():
                    total[each] += count * (1 if turns is None else turns)
            elif operation.does == "conditional":
                branches = [self._found(branch) for branch in branches_of(operation.rest)]
                total += max(branches, key=lambda found: sum(size * n for (_, size, _), n in found.items()))
            else:
                for inner in self._called(operation):
                    total += self._found(inner)
        return total

    def _called(self, operation: Operation) -> list[str]:
        named = re.findall(_CALLS, operation.rest)
        return [name for each in named for name in re.findall(r"[\w.\-]+", each) if name in self.computations]

    def _reached(self, name: str, seen: set[str] | None = None) -> set[str]:
        """A computation and all that it calls."""
        seen = set() if seen is None else seen
        if name not in seen:
            seen.add(name)
            for operation in self.computations[name].values():
                for inner in self._called(operation):
                    self._reached(inner, seen)
        return seen

    def _group(self, operation: Operation) -> int:
        """The devices that take part in one collective."""
        listed = re.search(r"replica_groups=\{\{([\d,]+)\}", operation.rest)
        if listed:
            return listed[1].count(",") + 1
        folded = re.search(r"replica_groups=\[\d+,(\d+)\]<=", operation.rest)  # "[4,2]<=[8]": 4 groups of 2
        if folded:
            return int(folded[1])
        # "mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}": 2 groups of 4.
        named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", operation.rest)
        if not named:
            return self.devices
        sizes = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        return prod(int(sizes[axis]) for axis in named[2].split(","))


def _bytes(operation: Operation, kind: str) -> int:
    """Bytes of a collective's result; the first half of a started gather's or permutation's arrays are its operands."""
    shapes = arrays(operation.shape)
    if operation.does.endswith("-start") and kind != "all-reduce":
        shapes = [shape for shape in shapes if "[]" not in shape]  # contexts of TPUs
        shapes = shapes[len(shapes) // 2 :]
    return int(sum(map(array_bytes, shapes)))
