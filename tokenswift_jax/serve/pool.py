"""A pool: slots of one capacity, the runs in them, the prompts on their way into them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from tokenswift_jax.engine.capacity import check_memory
from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.layout import Layout, scratch_of
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.prefill import Prefill, Prefix, chunk_rows, chunk_widths
from tokenswift_jax.engine.step_result import StepResult
from tokenswift_jax.kv.dense import BLOCK, round_up
from tokenswift_jax.parallel.device_memory import cache_bytes_on_each
from tokenswift_jax.progress_report import Report, silent
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.draft_value import DraftValue
from tokenswift_jax.serve.lone_text import lone_texts
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.prefix_store import PrefixStore, StoredText
from tokenswift_jax.serve.run import Run
from tokenswift_jax.serve.tenancy import Flight, Tenancy
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.token_log import RECORD

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_SMALLEST = 1024  # slots of the smallest cache that a prompt enters before it moves to its slot
_TIMED = 8  # iterations whose time tells the cost of a plan
_IN_FLIGHT = 2  # chunks that the device has: the next one hides the host's work on the last one
LONG = 2048  # positions above which a text is long
_CHUNK_SECONDS, _LEAST = 0.016, 4  # of a chunk of long texts, and its fewest iterations
_WEIGHT = 0.1  # of the newest chunk in the running average
_TOKEN, _OFFSET = map(RECORD.index, ("token_ids", "offsets"))
_T = TypeVar("_T")
_GROWTH = 4  # factor from one such size to the next: every size costs five programs


@dataclass(frozen=True)
class PoolSize:
    """The size of a pool.

    Attributes:
      slots: texts at once.
      length: positions of the longest text, prompt included.
    """

    slots: int
    length: int


class Pool:
    """Slots of one capacity; the scheduler's thread alone calls it.

    Attributes:
      size: its size.
      bytes: those of its caches, on each device.
      engine: the engine of the slots.
      tenants: the runs in the slots.
      coming: the runs whose prompts enter a cache, in the order in which they take turns.
      value: the value of drafts to several texts; None where they have no choice.
      lone: the knowledge for texts that are alone here; None where they have no choice.
    """

    def __init__(
        self,
        model: Model,
        size: PoolSize,
        plans: PlanSet,
        *,
        reserved: int = 0,
        prefixes: PrefixStore | None = None,
        report: Report = silent,
    ) -> None:
        """Checks that the pool fits the memory, beside `reserved` bytes of others; `warm_up` allocates it.

        `prefixes` are the K/V of earlier texts; None: every prompt is computed.

        Raises:
          UserError: it does not.
        """
        config, dtype = model.config, jax.numpy.dtype(model.dtype)
        self.size, self._plans = size, plans
        self.lone = lone_texts(model, size.slots, plans)
        self._programs = [*plans.variants, *(self.lone.programs if self.lone else ())]
        drafting = [named.plan for named in self._programs]
        scratch = scratch_of(drafting)
        needed = max(size.length + scratch + 1, round_up(size.length, chunk_rows(size.length)))
        self.capacity = round_up(needed)
        placement = Placement(model.mesh)
        cyclic = placement.cyclic(plans.draft_block)
        layout = Layout.of(config, dtype, self.capacity, plans.features[-1], drafting, plans.spec, cyclic=cyclic)
        self.staging = staging_sizes(self.capacity)
        # Two prompts may be on their way at once: one of any length and one of the smallest size.
        self._prompts = self.capacity, self.staging[0]
        beside = sum(cache_bytes_on_each(model.mesh, config, 1, each, dtype) for each in self._prompts)
        drafts = layout.drafter_bytes(size.slots, placement.sizes) + 2 * layout.drafter_bytes(1, placement.sizes)
        slots = cache_bytes_on_each(model.mesh, config, size.slots, self.capacity, dtype)
        self.bytes = slots + beside + drafts
        check_memory(
            config,
            size.slots,
            self.capacity,
            dtype,
            advice="lower max_length or slots",
            drafter_bytes=beside + drafts + reserved,
            arguments=("max_length", "slots"),
            mesh=model.mesh,
        )
        self.engine = Engine(model, layout, size.slots, report=report)
        self.tenants: dict[int, Tenancy] = {}
        self.coming: deque[tuple[Run, Prefill]] = deque()
        self.prefixes = prefixes
        # In all pools or in none: the K/V of prompts, which they share, come from one program.
        self._keeps_hidden = plans.optional and config.num_draft_heads > 0
        self._texts: dict[Run, StoredText] = {}  # of the runs in `coming`
        self.value: DraftValue | None = None
        self._iteration: float | None = None  # seconds, a running average

    def warm_up(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Allocates the slots and compiles every program that a request can need, unless that is `given_up`."""
        greedy = SamplingConfig(temperature=0.0)
        first = self._plans.variants[0]
        lengths = [2, *(width + 1 for width in chunk_widths()[:-1])]  # a prompt for each of prefill's programs
        for number, slots in enumerate([self.staging[0], *self.staging]):
            for length in lengths if number < 2 else lengths[-1:]:
                request = Request((0,) * length, greedy, 3, predicted_ids=(0,) * (number == 0))
                for emitted in ([], [0]):
                    if given_up():
                        return
                    prefill = self._prefill(request, emitted, slots)
                    if self.prefixes is not None and number and not emitted:
                        prefill.compile_reuse()
                    self.engine.insert(prefill, [0]).result()
                    if number == 0:  # with a plan prepared, an insertion also brings the row's drafts up to date
                        self.engine.prepare(first)
        variants, compiled = self._plans.variants, self.engine.programs.compile_seconds
        for named in self._programs:
            if given_up():
                return
            self.engine.prepare(named)
            self.engine.step(named, 1).result()
            if named in self._plans.ngrams[:1]:  # an insertion brings the row's drafts up to date for each drafter
                for slots in self.staging:
                    prefill = self._prefill(request, [], slots)
                    self.engine.insert(prefill, [0]).result()
        if self.lone is not None:
            took = (self.engine.programs.compile_seconds - compiled) / len(self._programs)
            self.lone.count(prefill, self.engine)
            self.lone.measure(self.engine, lengths[-1], took, self.size.length)
        if self._plans.optional and self._plans.drafts and self.size.slots > 1:
            self.value = DraftValue(*map(self._seconds, (variants[0], self._plans.undrafted[0])))
        if self.prefixes is not None:
            self.engine.part(0, 0).result()
        self.engine.evict([0])

    def _seconds(self, named: NamedPlan) -> float:
        """Seconds of some iterations on frozen rows."""
        self.engine.prepare(named)
        return min(self.engine.frozen_seconds(named, _TIMED) for _ in range(3))

    def _prefill(
        self, request: Request, emitted: Sequence[int], capacity: int, prefix: Prefix | None = None
    ) -> Prefill:
        keeps = self._keeps_hidden
        return self.engine.prefill([request], [emitted], capacity=capacity, prefix=prefix, keep_hidden=keeps)

    def fits(self, request: Request) -> bool:
        """Whether a slot has room for the request."""
        return len(request.prompt_ids) + request.max_new_tokens <= self.size.length

    @property
    def drafts_ngrams(self) -> bool:
        """Whether its plans draft n-grams."""
        return any(named.plan.tree.ngram_k for named in self._programs)

    @property
    def vacant(self) -> list[int]:
        """The slots that are neither taken nor promised to a prompt on its way."""
        free = [slot for slot in range(self.size.slots) if slot not in self.tenants]
        return free[: max(len(free) - len(self.coming), 0)]

    @property
    def inhabitants(self) -> list[Run]:
        """The runs in its slots and on their way there."""
        return [*(tenancy.run for tenancy in self.tenants.values()), *(run for run, _ in self.coming)]

    @property
    def ends_soon(self) -> bool:
        """Whether one of its texts is near its end."""
        return any(tenancy.run.ends_soon for tenancy in self.tenants.values())

    def may_begin(self, run: Run) -> bool:
        """Whether the run's prompt may enter a cache now: there is a slot for it, and memory beside other prompts."""
        if not self.vacant:
            return False
        sizes = [prefill.capacity for _, prefill in self.coming] + [self._staging_of(run)]
        return len(sizes) <= 2 and (len(sizes) == 1 or min(sizes) == self.staging[0])

    def begin(self, run: Run) -> int:
        """Begins a prefill of the run's prompt and its tokens so far.

        Returns the tokens of the prompt whose K/V are in the store.
        """
        ids, capacity = [*run.request.prompt_ids, *run.tokens], self._staging_of(run)
        prefix = text = None
        if self.prefixes is not None:
            text = self._texts[run] = StoredText(self.prefixes, run.caller, run.family, ids[:-1])
            prefix = Prefix(ids[: len(text.parts) * BLOCK], text.parts)
        prefill = self._prefill(run.request, run.tokens, capacity, prefix)
        if text is not None:
            text.begin(prefill.reused // BLOCK)
        self.coming.append((run, prefill))
        return min(prefill.reused, len(run.request.prompt_ids))

    def advance(self) -> int:
        """Sends one chunk of the prompt whose turn it is; returns the positions that it computes."""
        run, prefill = self.coming[0]
        before = max(prefill.done, prefill.reused)
        prefill.advance()
        if run in self._texts:
            final = min(prefill.aligned, prefill.total)
            self._texts[run].keep(final, prefill.rooted[0], lambda number: partial(_same, prefill.part(number)))
        self.coming.rotate(-1)
        return max(min(prefill.done, prefill.total) - before, 0)

    def keep(self, tenancy: Tenancy, committed: int) -> None:
        """Stores K/V of the `committed` positions of the text in a slot."""
        run, text = tenancy.run, tenancy.text
        if text is None or run.family is None or not text.behind(committed):
            return
        ids = [*run.request.prompt_ids, *run.tokens]
        text.keep(min(committed, len(ids)), ids, lambda number: self.engine.part(tenancy.slot, number).result)

    def arrived(self) -> list[Flight]:
        """Puts the prompts that are complete into their slots."""
        complete = [entry for entry in self.coming if entry[1].finished]
        flights = []
        for entry in complete:
            run, prefill = entry
            slot = next(slot for slot in range(self.size.slots) if slot not in self.tenants)
            prompt = prefill if self._keeps_hidden else None
            tenancy = self.tenants[slot] = Tenancy(run, slot, text=self._texts.pop(run, None), prompt=prompt)
            if tenancy.text is not None:
                tenancy.text.decode()
            self.coming.remove(entry)
            if self.value is not None and run.request.predicted_ids:
                self.value.retry()
            flights.append(Flight(self, {0: tenancy}, self.engine.insert(prefill, [slot]), inserted=True))
        return flights

    def wait_for_prompts(self) -> None:
        """Waits until the device has computed the chunks of prompts sent so far."""
        for _, prefill in self.coming:
            jax.block_until_ready(prefill.newest)

    def took(self, seconds: float, iterations: int) -> None:
        """Takes the seconds and the iterations of a chunk."""
        if seconds > 0 and iterations:
            found, before = seconds / iterations, self._iteration
            self._iteration = found if before is None else before + _WEIGHT * (found - before)

    def may_step(self, in_flight: int, *, beside: bool) -> bool:
        """Whether the next chunk may be sent beside so many results of the pool that are still to come.

        `beside`: whether texts of other pools decode too. Their chunks hide the host's work on this pool's, and would
        wait for two of them.
        """
        if not self.tenants or in_flight >= (1 if beside else _IN_FLIGHT):
            return False
        tenancy = self._alone
        if tenancy is None or not in_flight:
            return True
        return tenancy.lone is not None and tenancy.lone.may_run_ahead(self.engine)

    @property
    def _alone(self) -> Tenancy | None:
        """The tenancy of a text that is alone and has a choice of plans; the program with log-probabilities is one."""
        only = next(iter(self.tenants.values())) if len(self.tenants) == 1 else None
        return None if only is None or self.lone is None or only.run.logprobs else only

    def step(self, iterations: int | None) -> Flight:
        """Sends a chunk of at most so many iterations; None: a whole chunk.

        Chunks of long texts take about `_CHUNK_SECONDS`: short requests that come meanwhile wait for them. Chunks of
        other texts are whole: they cost less host work a token.
        """
        runs = [tenancy.run for tenancy in self.tenants.values()]
        if self._iteration is not None and any(run.length > LONG for run in runs):
            most = max(math.ceil(_CHUNK_SECONDS / self._iteration), _LEAST)
            iterations = most if iterations is None else min(iterations, most)
        tenancy, chosen = self._alone, None
        if tenancy is not None and self.lone is not None:
            tenancy.lone = tenancy.lone or self.lone.begin(tenancy.run, tenancy.prompt, self.engine)
            named, most = tenancy.lone.next_plan()
            iterations = min((each for each in (iterations, most) if each is not None), default=None)
            chosen = named
        else:
            drafted = self.value is None or self.value.pays()
            settings, logprobs = [run.request.sampling for run in runs], any(run.logprobs for run in runs)
            named = self._plans.named(settings, logprobs, drafted=drafted)
        self.engine.prepare(named)
        rows = {each.slot: each for each in self.tenants.values()}
        for each in rows.values():
            each.prompt = None
        return Flight(self, rows, self.engine.step(named, iterations), drafted=named.plan.rows > 1, chosen=chosen)

    def learn(self, flight: Flight, result: StepResult, seconds: float | None) -> None:
        """Takes from the result of a chunk how many tokens its drafts gave; `seconds` None: its time tells nothing."""
        for row, tenancy in flight.rows.items():
            if tenancy.active and tenancy.lone is not None and not flight.inserted:
                ids = result.records[row, : result.counts[row], _TOKEN].tolist()
                tenancy.lone.took(flight.chosen, ids, result.iterations, seconds)
        if self.value is not None and flight.drafted:
            records = [result.records[row, : result.counts[row]] for row in flight.rows]
            begun = sum(int((each[:, _OFFSET] == 0).sum()) for each in records)
            self.value.took(sum(map(len, records)), begun)

    def leave(self, run: Run) -> None:
        """Frees the slot of a run, or drops its prefill."""
        for tenancy in list(self.tenants.values()):
            if tenancy.run is run:
                tenancy.active = False
                if tenancy.lone is not None:
                    tenancy.lone.close()
                del self.tenants[tenancy.slot]
                self.engine.evict([tenancy.slot])
        self.coming = deque(entry for entry in self.coming if entry[0] is not run)
        self._texts.pop(run, None)

    def close(self) -> None:
        """Frees the device's state, and writes what its texts have shown to disk."""
        self.engine.close()
        if self.prefixes is not None:
            self.prefixes.close()
        if self.lone is not None:
            self.lone.close()

    def arrays(self) -> dict[str, Any]:
        """The settings of the rows, and the shapes of the state and of the caches of prompts on their way."""
        layout, found = self.engine.layout, self.engine.arrays()
        caches = jax.eval_shape(lambda: tuple(layout.cache(1, capacity) for capacity in self._prompts))
        return {"settings": found["settings"], "state": found["state"], "prompts": caches}

    def _staging_of(self, run: Run) -> int:
        length = len(run.request.prompt_ids) + len(run.tokens)
        needed = max(round_up(length + 1), round_up(length, chunk_rows(length)))
        return next((size for size in self.staging if size >= needed), self.capacity)


def staging_sizes(capacity: int) -> Sequence[int]:
    """The capacities of the caches that prompts enter before they move to a slot, smallest first."""
    sizes = []
    size = _SMALLEST
    while size < capacity:
        sizes.append(size)
        size *= _GROWTH
    return [*sizes, capacity]


def _same(value: _T) -> _T:
    return value
