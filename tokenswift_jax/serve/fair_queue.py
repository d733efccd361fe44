"""The queue of waiting runs: the owner that has had the fewest tokens comes first."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from tokenswift_jax.serve.run import Run

_REMEMBERED = 1024  # owners without runs whose counts are kept


class FairQueue:
    """Waiting runs by owner, first come first served within each.

    Each owner has a count of the tokens computed for it, prompts included. The order of the queue is the order in which
    runs would be admitted if each used all its tokens: a long run of one owner lets many short ones of another pass. An
    owner that comes back from a pause gets no credit for it: its count rises to the smallest count of those present.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Run]] = {}
        self._served: dict[str, float] = {}
        self._admitted: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def present(self) -> set[str]:
        """The owners with runs that wait or were admitted and have not left."""
        return {*self._waiting, *(owner for owner, count in self._admitted.items() if count)}

    def push(self, run: Run, *, front: bool = False) -> None:
        """Adds a run behind its owner's others, or before them."""
        present = self.present
        if run.owner not in present:
            floor = min((self._served[owner] for owner in present), default=0.0)
            self._served[run.owner] = max(self._served.get(run.owner, 0.0), floor)
        queue = self._waiting.setdefault(run.owner, deque())
        queue.appendleft(run) if front else queue.append(run)

    def remove(self, run: Run) -> bool:
        """Takes out a run; returns whether it waited."""
        queue = self._waiting.get(run.owner)
        if queue is None or run not in queue:
            return False
        queue.remove(run)
        if not queue:
            del self._waiting[run.owner]
        return True

    def first(self, fits: Callable[[Run], bool]) -> Run | None:
        """Takes out the first run that `fits`, and counts it as admitted until `left`."""
        run = next((run for run in self.order() if fits(run)), None)
        if run is not None:
            self.remove(run)
            self._admitted[run.owner] += 1
        return run

    def left(self, owner: str) -> None:
        """Notes that an admitted run of the owner has ended or paused."""
        self._admitted[owner] -= 1
        if len(self._served) > _REMEMBERED:
            present = self.present
            self._served = {owner: count for owner, count in self._served.items() if owner in present}
            self._admitted = +self._admitted

    def charge(self, owner: str, tokens: int) -> None:
        """Counts tokens computed for an owner."""
        self._served[owner] = self._served.get(owner, 0.0) + tokens

    def served(self, owner: str) -> float:
        """The tokens counted for an owner."""
        return self._served.get(owner, 0.0)

    def order(self) -> Iterator[Run]:
        """The waiting runs in the order in which they would be admitted."""
        counts = {owner: self._served[owner] for owner in self._waiting}
        waiting = {owner: list(runs) for owner, runs in self._waiting.items()}
        places = dict.fromkeys(waiting, 0)
        while places:
            heads = {owner: waiting[owner][place] for owner, place in places.items()}
            owner = min(heads, key=lambda each: (counts[each], self._admitted[each], heads[each].submitted))
            run = heads[owner]
            yield run
            counts[owner] += run.length - len(run.tokens)
            places[owner] += 1
            if places[owner] == len(waiting[owner]):
                del places[owner]
