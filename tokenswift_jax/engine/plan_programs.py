"""The programs of plans on an engine: what they are called with, how they are compiled, how they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tokenswift_jax.engine import compile_cache
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.layout import Layout, with_all_parts, with_parts_at
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.speculate.drafter import Drafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.step.loop import Chunk, compiled
from tokenswift_jax.step.state import DecodeState, StepInputs

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

CHUNK_TOKENS = 32  # records per row in one chunk: frequent enough for a reader, rare enough for the host


class PlanPrograms:
    """The programs that each plan has: one runs chunks, and one brings the plan's drafts up to date with the rows.

    Attributes:
      cache: compiles and keeps executables.
    """

    def __init__(self, model: Model, layout: Layout, placement: Placement, cache: CompileCache) -> None:
        self.cache = cache
        self._model, self._layout, self._placement = model, layout, placement
        self._functions: dict[Plan, tuple[Callable, tuple[int, ...]]] = {}
        # Executables of prepared plans. Without them, a chunk builds the key of its executable from 80 to 400 arrays
        # (cost: 0.15 to 0.5 ms of a core that the chunk before needs on a CPU).
        self._executables: dict[Plan, jax.stages.Compiled] = {}
        self._catch_ups: dict[Drafter, jax.stages.Compiled] = {}
        self._counts: dict[int, jax.Array] = {}  # numbers on the device; to make one takes 0.07 ms

    def is_prepared(self, named: NamedPlan) -> bool:
        """Whether `prepare` has compiled the program that runs chunks of a plan."""
        return named.plan in self._executables

    def prepare(self, named: NamedPlan, state: DecodeState, inputs: StepInputs) -> None:
        """Compiles the program that runs chunks of a plan on such a state, unless an earlier call did."""
        if self.is_prepared(named):
            return
        function, places = self._function(named.plan)
        with self._placement.in_use():
            arguments = self._arguments(named.plan, with_parts_at(state, places), inputs, None)
            self._executables[named.plan] = self.cache.compile(function, *arguments, name=named.label)

    def run(
        self,
        named: NamedPlan,
        state: DecodeState,
        inputs: StepInputs,
        iterations: int | None,
        *,
        prepared: bool = True,
    ) -> tuple[DecodeState, Chunk]:
        """Runs a chunk of at most `iterations`; None: until a row has CHUNK_TOKENS records.

        `prepared` says that `prepare` had a state of the same shapes.
        """
        function, places = self._function(named.plan)
        arguments = self._arguments(named.plan, with_parts_at(state, places), inputs, iterations)
        known = self._executables[named.plan] if prepared else None
        after, chunk = self.cache.run(function, *arguments, name=named.label, executable=known)
        return with_all_parts(after, places, state), self._placement.readable(chunk)

    def prepare_catch_up(self, named: NamedPlan, state: DecodeState, settings: SequenceParams) -> None:
        """Compiles the program of `catch_up` on such a state, unless an earlier call did."""
        drafter = named.plan.drafter
        if drafter not in self._catch_ups:
            call = self._catching_up(drafter, state, settings)
            self._catch_ups[drafter] = self.cache.compile(*call, name=f"the drafts of {named.label}")

    def catch_up(
        self, drafter: Drafter, state: DecodeState, settings: SequenceParams, *, prepared: bool = True
    ) -> DecodeState:
        """The state whose tables and caches of a drafter are up to date with its rows; it uses up `state`.

        `prepared` says that `prepare_catch_up` had a state of the same shapes.
        """
        call = self._catching_up(drafter, state, settings)
        known = self._catch_ups[drafter] if prepared else None
        after = self.cache.run(*call, name="drafts", executable=known)
        return with_all_parts(after, self._layout.places(drafter), state)

    def keys(self, named: NamedPlan, state: DecodeState, inputs: StepInputs) -> list[tuple]:
        """The keys of a plan's executables in the cache."""
        with self._placement.in_use():
            return [compile_cache.key_of(*call) for call in self._calls(named, state, inputs)]

    def compiling(
        self, named: NamedPlan, state: DecodeState, inputs: StepInputs
    ) -> Callable[[Callable[[], bool]], float]:
        """A function, for any thread, that compiles the programs of a plan and returns the seconds it took.

        It stops before the next program once the function that it is called with returns True. `cache` does not count
        these seconds: no caller of the engine waits for them.
        """
        # Shapes in place of arrays: the next chunk takes over the buffers.
        with self._placement.in_use():
            calls = [
                (function, *jax.tree.map(_shape_of, given)) for function, *given in self._calls(named, state, inputs)
            ]
        own = CompileCache()

        def compile_them(stopped: Callable[[], bool]) -> float:
            for call in calls:
                if not stopped():
                    with self._placement.in_use():
                        own.compile(*call)
            return own.compile_seconds

        return compile_them

    def _calls(self, named: NamedPlan, state: DecodeState, inputs: StepInputs) -> list[tuple]:
        """The calls that compile the programs of a plan: their functions and arguments."""
        function, places = self._function(named.plan)
        calls = [(function, *self._arguments(named.plan, with_parts_at(state, places), inputs, None))]
        if named.plan.drafter.parts:
            calls.append(self._catching_up(named.plan.drafter, state, inputs.sequence))
        return calls

    def _function(self, plan: Plan) -> tuple[Callable, tuple[int, ...]]:
        """The function that runs chunks of a plan, and the places of the plan's parts in the layout."""
        found = self._functions.get(plan)
        if found is None:
            function = self._model.program("chunk", plan, CHUNK_TOKENS + plan.depth)
            found = self._functions[plan] = function, self._layout.places(plan.drafter)
        return found

    def _arguments(self, plan: Plan, state: DecodeState, inputs: StepInputs, iterations: int | None) -> tuple:
        """The arguments of a chunk of at most `iterations`; `state` contains the parts of the plan's drafter."""
        count = CHUNK_TOKENS + plan.depth if iterations is None else iterations
        most = self._counts.get(count)
        if most is None:
            most = self._counts[count] = jnp.asarray(count, jnp.int32)
        # Drop the parameters that only other plans need, so that a plan has the same executable in every mode.
        return (inputs if plan.draft_graph is not None else replace(inputs, draft_params=None)), state, most

    def _catching_up(self, drafter: Drafter, state: DecodeState, settings: SequenceParams) -> tuple:
        """The function that brings the state of a drafter up to date, and its arguments."""
        function = compiled("catch_up", None, self._layout.config, drafter)
        return function, settings, with_parts_at(state, self._layout.places(drafter))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array, placed as the array is; arrays of one device are placed nowhere in particular."""
    single = isinstance(leaf.sharding, jax.sharding.SingleDeviceSharding)
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=None if single else leaf.sharding, weak_type=leaf.weak_type
    )
