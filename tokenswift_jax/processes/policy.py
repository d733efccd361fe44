"""The plan policy of several processes: process 0 asks its own, sends every answer, and the others follow.

Policies choose by measured times, which differ between processes; and processes that run different programs wait for
each other forever. So the others repeat the calls of the engine that process 0's policy makes, and take its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.policy import PlanPolicy
from tokenswift_jax.processes import agreement, interrupts, watchdog
from tokenswift_jax.speculate.plans import NamedPlan

_STOP, _DONE = "stop", "done"


def agreed_policy(make: Callable[[], PlanPolicy], plans: Sequence[NamedPlan]) -> PlanPolicy:
    """The policy that `make` returns; in several processes, one that all of them share.

    Args:
      make: makes a policy; called in process 0 only.
      plans: every plan that may run, in one order in all processes.
    """
    if not agreement.several():
        return make()
    return _Leader(make(), plans) if agreement.leads() else _Follower(plans)


class _Leader:
    """Process 0's: it sends each answer before it gives it."""

    def __init__(self, own: PlanPolicy, plans: Sequence[NamedPlan]) -> None:
        self._own, self._plans, self._channel = own, list(plans), agreement.channel_of_a_text()

    @property
    def reason(self) -> str | None:
        """As the own policy's."""
        return self._own.reason

    @property
    def waiting(self) -> bool:
        """As the own policy's."""
        return self._sent(self._own.waiting)

    @property
    def busy(self) -> bool:
        """As the own policy's."""
        return self._sent(self._own.busy)

    def attend(self, engine: Engine, length: int) -> None:
        """Attends with an engine whose calls the others repeat."""
        self._check()
        mirrored: Any = _Mirrored(engine, self._plans, self._channel)
        self._own.attend(mirrored, length)
        self._channel.send(_DONE)

    def measure(self, engine: Engine, function: Callable[[Any], None]) -> None:
        """Calls `function` with such an engine."""
        mirrored = _Mirrored(engine, self._plans, self._channel)
        function(mirrored)
        self._channel.send(_DONE)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """As the own policy's."""
        named, iterations = self._own.next_plan()
        self._sent((self._plans.index(named), iterations))
        return named, iterations

    def observe(self, named: NamedPlan, tokens: int, iterations: int, seconds: float, catch_up: float = 0.0) -> None:
        """Passes the measurements on."""
        self._own.observe(named, tokens, iterations, seconds, catch_up)

    def close(self) -> None:
        """Ends the own policy's work, and the text in the other processes."""
        self._own.close()
        self._channel.send(_STOP)

    def _sent(self, answer: Any) -> Any:
        self._check()
        self._channel.send(answer)
        return answer

    def _check(self) -> None:
        watchdog.beat()
        interrupts.check()


class _Follower:
    """The policy of the other processes."""

    reason = None

    def __init__(self, plans: Sequence[NamedPlan]) -> None:
        self._plans, self._channel = list(plans), agreement.channel_of_a_text()

    @property
    def waiting(self) -> bool:
        """The leader's answer."""
        return self._received()

    @property
    def busy(self) -> bool:
        """The leader's answer."""
        return self._received()

    def attend(self, engine: Engine, length: int) -> None:
        """Repeats the engine's calls that the leader's policy makes."""
        while (call := self._received()) != _DONE:
            name, plan, *more = call
            getattr(engine, name)(self._plans[plan], *more)

    def measure(self, engine: Engine, function: Callable[[Any], None]) -> None:
        """Repeats them too."""
        self.attend(engine, 0)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The leader's answer."""
        plan, iterations = self._received()
        return self._plans[plan], iterations

    def observe(self, named: NamedPlan, tokens: int, iterations: int, seconds: float, catch_up: float = 0.0) -> None:
        """Ignores the measurements."""

    def close(self) -> None:
        """Has nothing to end."""

    def _received(self) -> Any:
        watchdog.beat()
        answer = self._channel.receive()
        if answer == _STOP:
            raise KeyboardInterrupt
        return answer


class _Mirrored:
    """An engine whose calls with programs the other processes repeat."""

    def __init__(self, engine: Engine, plans: list[NamedPlan], channel: agreement.Channel) -> None:
        self._engine, self._plans, self._channel = engine, plans, channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prepare(self, named: NamedPlan) -> float:
        """As `Engine.prepare`."""
        self._channel.send(("prepare", self._plans.index(named)))
        return self._engine.prepare(named)

    def frozen_seconds(self, named: NamedPlan, iterations: int) -> float:
        """As `Engine.frozen_seconds`."""
        self._channel.send(("frozen_seconds", self._plans.index(named), iterations))
        return self._engine.frozen_seconds(named, iterations)
