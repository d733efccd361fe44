"""The choice of a pool for a run: where it decodes with others, at the lowest cost, and leaves room for longer runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tokenswift_jax.engine.plan_programs import CHUNK_TOKENS
from tokenswift_jax.serve.fair_queue import FairQueue
from tokenswift_jax.serve.pool import LONG, Pool
from tokenswift_jax.serve.run import Run

_PATIENT = LONG  # positions of the longest text that waits for a wider pool though another has a slot
_GATHERED = 1024  # tokens of the longest text that moves to a wider pool


class PoolChoice:
    """Chooses pools for the runs of a scheduler, whose lock guards the calls."""

    def __init__(self, pools: Sequence[Pool], queue: FairQueue, places: Mapping[Run, Pool]) -> None:
        """Reads the waiting runs from `queue`, and from `places` the pools of those that are admitted.

        Args:
          pools: the slots, the shortest ones first and the narrowest first among those of one length.
          queue: the waiting runs.
          places: the pool of every admitted run.
        """
        self._pools, self._queue, self._places = pools, queue, places

    def wanted_by(self, pool: Pool) -> Callable[[Run], bool]:
        """A function that says whether a waiting run should enter the pool now."""
        longest = self._longest()
        return lambda run: self._chosen(run, longest) is pool and pool.may_begin(run)

    def wider(self, run: Run, pool: Pool) -> Pool | None:
        """A wider pool that an admitted run of `pool` should move to, where others decode for a while; None: it stays.

        Long texts stay, because to enter a pool costs them more than the company gains; so do those near their end.
        """
        if not _may_move(run):
            return None
        best = self._chosen(run, self._longest())
        if best is None or best.size.slots <= pool.size.slots:
            return None
        # Others that end within a chunk would be gone when it comes.
        return best if any(other.tokens_left >= CHUNK_TOKENS for other in best.inhabitants) else None

    def _home(self, run: Run) -> int:
        """The length of the shortest slots with room for a run."""
        return next(pool.size.length for pool in self._pools if pool.fits(run.request))

    def _longest(self) -> int:
        """The length of the slots that the longest waiting run needs; 0: none waits."""
        return max(map(self._home, self._queue.order()), default=0)

    def _chosen(self, run: Run, longest: int) -> Pool | None:
        """The pool that a run should enter, or the one that it is in; None: it has to wait. `longest` is `_longest()`.

        Alone, it pays for the fewest rows in the narrowest pool. Otherwise the widest one is best: runs of one pool
        decode together, and those of several pools in turns. A single one of a few tokens beside texts that go on takes
        an empty pool: there it waits for none of their chunks, since they let it come to its end first
        (`Flights.gives_way`). Slots longer than it needs are for longer runs: it leaves them the last one, and enters
        that only if its own are taken and no longer run waits.
        """
        home = self._home(run)
        present = self._places.get(run)
        open_to = [pool for pool in self._pools if pool.fits(run.request) and (pool.vacant or pool is present)]
        # A pool whose cache for prompts is taken would let the run wait beside others that are idle.
        vacant = [pool for pool in open_to if pool is present or pool.may_begin(run)] or open_to
        single = len(self._queue) == 1
        if single and not self._places:
            return min(vacant, key=_slots, default=None)
        own = [pool for pool in vacant if pool.size.length == home]
        longer = [pool for pool in vacant if pool.size.length > home]
        if longest > home or (own and sum(len(pool.vacant) for pool in longer) < 2):
            longer = []
        there = [other for pool in vacant for other in pool.inhabitants]
        staying = [other for other in there if not other.ends_soon]
        others = there if run.ends_soon else staying
        if single and not others and not self._has_company(run):
            return min([*own, *longer], key=_slots, default=None)
        empty = [pool for pool in [*own, *longer] if not pool.inhabitants]
        if single and run.ends_soon and staying and empty:
            return min(empty, key=_slots)
        best = max([*own, *longer], key=_slots, default=None)
        return None if best is not None and best is not present and self._should_wait(run, best) else best

    def _has_company(self, run: Run) -> bool:
        """Whether a run of another pool would join this one in a wider pool (`wider`)."""
        return run.tokens_left >= CHUNK_TOKENS and any(_may_move(other) for other in self._places if other is not run)

    def _should_wait(self, run: Run, vacant: Pool) -> bool:
        """Whether a run of a few tokens should wait for a slot of a wider pool than the vacant one.

        In the narrow pool, it would decode in turns with the wide one, and slow down all texts there. It waits no
        longer than the wide pool takes for as many tokens as it asks for.
        """
        if run.length > _PATIENT:
            return False
        full = [pool for pool in self._pools if pool.size.slots > vacant.size.slots and pool.fits(run.request)]
        return any(other.tokens_left <= run.tokens_left for pool in full for other in pool.inhabitants)


def _may_move(run: Run) -> bool:
    """Whether a run may still move to another pool."""
    return len(run.request.prompt_ids) + len(run.tokens) <= _GATHERED and not run.ends_soon


def _slots(pool: Pool) -> int:
    return pool.size.slots
