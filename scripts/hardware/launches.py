"""What a GPU program launches in one iteration, counted from XLA's list of its thunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

THUNKS = "*.thunk_sequence_after_thunk_passes.txt"  # as XLA dumps them
PROGRAM = "*gpu_after_optimizations.txt"
_THUNK = re.compile(r"^( *)\d+: (k\w+) ")
_HOLD = ("kWhile", "kCommandBuffer", "kSequential", "kConditional")


@dataclass(frozen=True)
class Launches:
    """Of one iteration of the outermost loop; of a program without loops, of all of it.

    Attributes:
      nodes: kernels and copies.
      graphs: launches of CUDA graphs by the host.
      waits: loops whose condition the host waits for, the outermost one's among them.
    """

    nodes: int
    graphs: int
    waits: int


def dumped_launches(folder: Path, program: str = "") -> Launches | None:
    """Counted from XLA's dump of the first program whose name contains `program`; None where it dumped none."""
    for thunks in sorted(folder.glob(THUNKS)):
        if program in thunks.name:
            (text,) = folder.glob(f"{thunks.name.removesuffix(THUNKS[1:])}.{PROGRAM}")
            return count(thunks.read_text(encoding="utf-8"), text.read_text(encoding="utf-8"))
    return None


def count(thunks: str, program: str) -> Launches:
    """Launches of an iteration; an inner loop counts as often as XLA knows that it turns, and not at all where XLA does
    not: it is for what seldom happens, and the host's wait for its condition counts.

    Args:
      thunks: XLA's list of them.
      program: the optimised program in XLA's text, which says how often loops turn.
    """
    turns = iter(_turns(program))
    nodes = graphs = waits = 0
    looped = re.search(r"^ *\d+: kWhile ", thunks, re.MULTILINE) is not None
    around: list[_Holder] = []  # what holds the present line, outermost first
    for line in thunks.splitlines():
        if line.strip().endswith("body:"):
            next(each for each in reversed(around) if not each.in_body).in_body = True
        found = _THUNK.match(line)
        if found is None:
            continue
        indent, kind = len(found[1]), found[2]
        while around and around[-1].indent >= indent:
            around.pop()
        loops = [each for each in around if each.kind == "kWhile"]
        times = prod(each.body if each.in_body else each.condition for each in loops) if loops or not looped else 0
        if kind not in _HOLD:
            nodes += times
        elif kind == "kWhile":
            known = next(turns)
            captured = any(each.kind == "kCommandBuffer" for each in around)
            waits += known is None and not captured and (times > 0 or not loops)
            # The outermost loop's body is the iteration.
            around.append(_Holder(indent, kind, known or int(not loops), int(known is None), in_body=False))
        else:
            graphs += times * (kind == "kCommandBuffer")
            around.append(_Holder(indent, kind, 1, 1, in_body=True))
    return Launches(nodes, graphs, waits)


@dataclass
class _Holder:
    """A thunk that holds others.

    Attributes:
      indent: of its line.
      kind: as XLA names it.
      body: how often its body runs in one pass of what holds it.
      condition: likewise, of a loop's condition.
      in_body: whether lines that follow are of its body.
    """

    indent: int
    kind: str
    body: int
    condition: int
    in_body: bool


def _turns(program: str) -> list[int | None]:
    """How often each loop turns, None where XLA does not know, in the order of their thunks: a loop before those in its
    body."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    entry = re.findall(r"^ENTRY %?([\w.\-]+)", program, re.MULTILINE)[0]

    def of(name: str) -> list[int | None]:
        found: list[int | None] = []
        for line in bodies[name].splitlines():
            body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if body:
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                found += [int(known[1]) if known else None, *of(body[1])]
        return found

    return of(entry)
