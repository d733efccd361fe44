"""The choice of plans replayed on texts that were decoded before: no clock, so a busy machine changes nothing.

    python scripts/policy_replay.py benchmarks/2026-11-26-policy-texts.json
    python scripts/policy_replay.py benchmarks/2026-11-26-policy-texts.json --vary

N-gram drafts of 1, 3 and 7 nodes are replayed on each text, with three sets of prices: those of SmolLM2 on two cores as
a user measured them (1.5 plain steps for 4 rows, 1.7 for 8), cheaper rows, and far higher ones. It prints the speed of
`auto` relative to plain decoding and to the best single plan; with --vary, the least and the mean of these for other
values of the policy's constants, which have their values from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import tokenswift_jax as ts
from tokenswift_jax.engine import adaptive, foresight
from tokenswift_jax.engine.foresight import CHAIN, NgramForesight
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import NamedPlan, autoregressive_plan, speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

STEP = 0.033  # seconds of SmolLM2's plain step
PRICES = ({1: 1.25, 3: 1.5, 7: 1.75}, {1: 1.1, 3: 1.2, 7: 1.5}, {1: 1.5, 3: 2.2, 7: 2.3})
VALUES = {
    "DISCOUNT": (0.75, 0.8, 0.9, 0.93),
    "MARGIN": (1.0, 1.02, 1.1, 1.15),
    "BELIEF": (0.5, 2, 4, 8),
    "TOKEN_DECAY": (0.98, 0.99, 0.999),
    "ITERATION_DECAY": (0.7, 0.9, 0.95),
    "STAKE": (0.3, 0.5, 0.7, 1.0),
    "FIRST": (3, 4, 8),
    "LATER": (8, 12, 32),
    "LEAST": (2, 8, 16),
}
_MOST, _SLOTS, _CHUNK = 20, 32, 32


class Replay:
    """One text with known prices; it is the chooser's `Knowledge`.

    Args:
      plain, plans: plain decoding and the n-gram plans.
      prompt, ids: the token ids of a prompt and of the text after it.
    """

    def __init__(self, plain: NamedPlan, plans: list[NamedPlan], prompt: list[int], ids: list[int]) -> None:
        self.plain, self.plans, self.text, self.first = plain, plans, prompt + ids, len(prompt)
        self.emitted = {named: emitted(self.text, len(prompt), named.plan.rows - 1) for named in plans}
        self.prices: dict[int, float] = {}

    def run(self, prices: dict[int, float]) -> tuple[float, float]:
        """Speed of the choice, relative to plain decoding and to the best single plan."""
        self.prices = prices
        self.foresight = NgramForesight([self.text[: self.first + 1]], [0], list(prices), _MOST, _SLOTS)
        chooser = adaptive.Chooser(self.plain, self.plans, len(self.text) - self.first, self)
        for named in self.plans:
            chooser.admit(named)
        self.at, clock = self.first, 0.0
        chunk = self._chunk(*chooser.next_plan())
        while chunk[1]:
            named, tokens, iterations, steps = chunk
            ahead = self._chunk(*chooser.next_plan()) if chooser.next_plan()[0] is named else None
            clock += steps + adaptive.OVERHEAD / STEP * (ahead is None)
            read = self.at - (ahead[1] if ahead else 0)
            self.foresight.read(0, self.text[read - tokens + 1 : read + 1])
            chooser.observe(named, tokens, iterations, steps * STEP)
            chunk = self._chunk(*chooser.next_plan()) if ahead is None else ahead
        tokens = len(self.text) - 1 - self.first
        best = min([float(tokens), *(self._alone(named) for named in self.plans)])
        return tokens / clock, best / clock

    def _chunk(self, named: NamedPlan, most: int | None) -> tuple[NamedPlan, int, int, float]:
        begun, iterations = self.at, 0
        while self.at < len(self.text) - 1 and self.at - begun < _CHUNK and (most is None or iterations < most):
            self.at += 1 if named is self.plain else self.emitted[named][self.at]
            self.at, iterations = min(self.at, len(self.text) - 1), iterations + 1
        return named, self.at - begun, iterations, iterations * (1.0 if named is self.plain else self.price(named))

    def _alone(self, named: NamedPlan) -> float:
        at, steps = self.first, 0.0
        while at < len(self.text) - 1:
            at, steps = at + self.emitted[named][at], steps + self.price(named)
        return steps

    # Knowledge

    def price(self, named: NamedPlan) -> float:
        """The price of the set."""
        return self.prices[named.plan.rows - 1]

    def is_measured(self, named: NamedPlan) -> bool:
        """All are."""
        return True

    def tokens(self, named: NamedPlan) -> float | None:
        """As the engine foresees them."""
        return self.foresight.tokens_an_iteration(named.plan.rows - 1)

    def is_live(self, named: NamedPlan) -> bool:
        """All are."""
        return True

    is_remembered = is_live

    def plain_seconds(self) -> float | None:
        """A plain step's."""
        return STEP

    def learn_price(self, named: NamedPlan, price: float) -> None:
        """Ignores it."""

    def learn_plain(self, seconds: float) -> None:
        """Ignores it."""


def emitted(text: list[int], first: int, nodes: int) -> dict[int, int]:
    """Tokens of the iteration at each root from position `first` on, with the n-gram table of that moment."""
    known: dict[int, dict[tuple[int, ...], tuple[int, int]]] = {}
    found = {}
    for root in range(CHAIN, len(text)):
        own, rest = known.setdefault(text[root - CHAIN], {}), tuple(text[root - CHAIN + 1 : root + 1])
        if rest not in own and len(own) == _SLOTS:
            del own[min(own, key=own.__getitem__)]
        own[rest] = own.get(rest, (0, 0))[0] + 1, root
        if root < first:
            continue
        own, depth = known.get(text[root], {}), min(CHAIN, nodes)
        drafts = sorted(own, key=own.__getitem__, reverse=True)[: max(1, nodes // CHAIN)]
        follows = text[root + 1 : root + 1 + depth]
        agreed = [sum(draft[:n] == tuple(follows[:n]) for n in range(1, len(follows) + 1)) for draft in drafts]
        found[root] = 1 + max(agreed, default=0)
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="JSON file: token ids of prompt and text by name")
    parser.add_argument("--vary", action="store_true", help="try other values of the constants")
    options = parser.parse_args(argv)
    config, features = ts.load().config, SamplingFeatures.GREEDY
    plans = speculative_plans(config, SpeculationConfig(), features, "cpu")
    plans = [named for named in plans if named.mode == "ngram"]
    plain = autoregressive_plan(config, features)
    texts: dict[str, Any] = json.loads(options.texts.read_text(encoding="utf-8"))
    replays = {name: Replay(plain, plans, text["prompt"], text["ids"]) for name, text in texts.items()}

    def summary() -> str:
        speeds = [replay.run(prices) for prices in PRICES for replay in replays.values()]
        over_plain, over_best = zip(*speeds, strict=True)
        mean = sum(over_best) / len(over_best)
        return f"least of plain {min(over_plain):.3f}, least of best {min(over_best):.3f}, mean of best {mean:.3f}"

    if not options.vary:
        for prices in PRICES:
            print(f"prices by nodes: {prices}")
            for name, replay in replays.items():
                print("  {:12} {:.2f} of plain decoding, {:.2f} of the best plan".format(name, *replay.run(prices)))
    print(f"as it is: {summary()}")
    for name, values in VALUES.items() if options.vary else ():
        module = foresight if hasattr(foresight, name) else adaptive
        kept = getattr(module, name)
        for value in values:
            setattr(module, name, value)
            print(f"{name} {value} ({kept}): {summary()}", flush=True)
        setattr(module, name, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
