"""The launches of a GPU program in one iteration, counted from XLA's list of its thunks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenswift_jax.hardware.program_text import branches_of

THUNKS = "*.thunk_sequence_after_thunk_passes.txt"  # as XLA dumps them
PROGRAM = "*gpu_after_optimizations.txt"
_THUNK = re.compile(r"^( *)\d+: (k\w+) ")
_PART = re.compile(r"(condition|body|\w*branch\w*):$")


@dataclass(frozen=True)
class Launches:
    """Counts for one iteration of the outermost loop, or for the whole program if it has no loop.

    Attributes:
      nodes: kernels and copies.
      graphs: launches of CUDA graphs by the host.
      waits: conditions that the host waits for: of loops, the outermost one's among them, and of branches.
      unordered: loops of the whole program that a graph contains and whose condition is no kernel. XLA lets such a loop
        run beside the kernels before it, so results are wrong.
    """

    nodes: int = 0
    graphs: int = 0
    waits: int = 0
    unordered: int = 0

    def __add__(self, other: Launches) -> Launches:
        return Launches(self.nodes + other.nodes, self.graphs + other.graphs, self.waits + other.waits)

    def __mul__(self, times: int) -> Launches:
        return Launches(self.nodes * times, self.graphs * times, self.waits * times)


@dataclass
class _Thunk:
    """A line of the list.

    Attributes:
      indent: of its line.
      kind: as XLA names it.
      turns: of a loop, how often its body runs; None where XLA does not know.
      parts: the thunks within it, by the name of the part ("" where it has only one).
    """

    indent: int
    kind: str
    turns: int | None = None
    parts: dict[str, list[_Thunk]] = field(default_factory=dict)


def dumped_launches(folder: Path, program: str = "") -> Launches | None:
    """Counted from XLA's dump of the first program whose name contains `program`; None where it dumped none."""
    for thunks in sorted(folder.glob(THUNKS)):
        if program in thunks.name:
            (text,) = folder.glob(f"{thunks.name.removesuffix(THUNKS[1:])}.{PROGRAM}")
            return count_launches(thunks.read_text(encoding="utf-8"), text.read_text(encoding="utf-8"))
    return None


def count_launches(thunks: str, program: str) -> Launches:
    """Launches of an iteration: of branches the larger one; of an inner loop as many turns as XLA knows that it takes,
    or its first condition alone where XLA does not know: such loops run seldom.

    Args:
      thunks: XLA's list of them.
      program: the optimised program in XLA's text, which says how often loops turn.

    Raises:
      ValueError: the two do not have the same loops.
    """
    outer = _parsed(thunks)
    loops, turns = list(_loops(outer)), _turns(program)
    if len(loops) != len(turns):
        raise ValueError(f"XLA lists {len(loops)} loops among its thunks and {len(turns)} in the program")
    for loop, known in zip(loops, turns, strict=True):
        loop.turns = known
    unordered = sum(_unordered(thunk, False) for thunk in outer)
    if not loops:
        return replace(sum((_of(thunk, False) for thunk in outer), Launches()), unordered=unordered)
    outermost, captured = _outermost(outer, False)
    once = [thunk for part in ("condition", "body") for thunk in outermost.parts.get(part, [])]
    counted = sum((_of(thunk, captured) for thunk in once), Launches(waits=int(not captured)))
    return replace(counted, unordered=unordered)


def _unordered(thunk: _Thunk, captured: bool) -> int:
    """The loops of a thunk, itself included, that are in a graph and have an empty condition."""
    inside = captured or thunk.kind == "kCommandBuffer"
    itself = thunk.kind == "kWhile" and captured and not thunk.parts.get("condition")
    return itself + sum(_unordered(each, inside) for nested in thunk.parts.values() for each in nested)


def _of(thunk: _Thunk, captured: bool) -> Launches:
    """Counts a thunk of an iteration. Within a graph (`captured`) the host neither launches nor waits."""
    if not thunk.parts and thunk.kind != "kCommandBuffer":
        return Launches(nodes=1)
    inside = captured or thunk.kind == "kCommandBuffer"
    parts = {name: sum((_of(each, inside) for each in nested), Launches()) for name, nested in thunk.parts.items()}
    wait = Launches(waits=int(not captured))
    if thunk.kind == "kWhile":
        known = thunk.turns
        return parts.get("condition", Launches()) + wait if known is None else parts.get("body", Launches()) * known
    if thunk.kind == "kConditional":
        return max(parts.values(), key=lambda each: each.nodes) + wait
    nested = sum(parts.values(), Launches())
    return nested + Launches(graphs=int(not captured)) if thunk.kind == "kCommandBuffer" else nested


def _parsed(thunks: str) -> list[_Thunk]:
    """The outermost thunks, those that they hold within them."""
    root = _Thunk(-4, "", parts={"": []})
    around = [(root, "")]  # thunks around the current line, outermost first, and the part in which it is
    for line in thunks.splitlines():
        found, named = _THUNK.match(line), _PART.search(line)
        if found:
            while around[-1][0].indent >= len(found[1]):
                around.pop()
            thunk, (holder, part) = _Thunk(len(found[1]), found[2]), around[-1]
            holder.parts.setdefault(part, []).append(thunk)
            around.append((thunk, ""))
        elif named:
            # A part's own line is indented by two columns within its thunk; but a condition's is at the margin, and the
            # name of the part after an empty part is on that part's line: then nothing came between.
            if line.strip() == named[0] and named[1] != "condition":
                while around[-1][0].indent >= len(line) - len(line.lstrip()):
                    around.pop()
            holder, _ = around[-1]
            around[-1] = holder, named[1]
            holder.parts.setdefault(named[1], [])
    return root.parts[""]


def _loops(thunks: list[_Thunk]) -> Iterator[_Thunk]:
    """All loops, each before those that it holds."""
    for thunk in thunks:
        if thunk.kind == "kWhile":
            yield thunk
        for nested in thunk.parts.values():
            yield from _loops(nested)


def _outermost(thunks: list[_Thunk], captured: bool) -> tuple[_Thunk, bool]:
    """The first loop, and whether it is within a graph."""
    for thunk in thunks:
        if thunk.kind == "kWhile":
            return thunk, captured
        inside = [each for nested in thunk.parts.values() for each in nested]
        if next(_loops(inside), None) is not None:
            return _outermost(inside, captured or thunk.kind == "kCommandBuffer")
    raise ValueError("there is no loop")


def _turns(program: str) -> list[int | None]:
    """How often each loop turns, None where XLA does not know, in the order of `_loops`."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    entry = re.findall(r"^ENTRY %?([\w.\-]+)", program, re.MULTILINE)[0]

    def of(name: str) -> list[int | None]:
        found: list[int | None] = []
        for line in bodies[name].splitlines():
            body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if body:
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                found += [int(known[1]) if known else None, *of(body[1])]
            for branch in branches_of(line) if " conditional(" in line else ():
                found += of(branch)
        return found

    return of(entry)
