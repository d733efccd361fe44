"""A simulated device that decodes one text under a `Chooser`: with stated drafts, or as texts of SmolLM2 were decoded.

    PYTHONPATH=. python tests/simulated_device.py BELIEF=1.0 LEAST=8

The command replays all stored texts with other values of the policy's constants and prints what that does.
"""

import json
import sys
from collections import deque
from pathlib import Path
from statistics import median_low

import numpy as np
import small_models

from tokenswift_jax.engine import adaptive, draft_evidence
from tokenswift_jax.engine.adaptive import Chooser
from tokenswift_jax.engine.foresight import CHAIN, NgramForesight
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter, HeadsDrafter
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.plans import NamedPlan, autoregressive_plan
from tokenswift_jax.speculate.tree import TreeSpec

CHUNK = 32  # tokens of a whole chunk
STEP = 0.022  # seconds of SmolLM2's plain step
OVERHEAD = 0.00075  # seconds of a chunk that does not run ahead
CONFIG = small_models.config(48)
PLAIN = autoregressive_plan(CONFIG, SamplingFeatures.SAMPLED)
CPU = {1: 1.25, 3: 1.5, 7: 1.75}  # prices by nodes


def fused(budget, draft=None):
    tree = TreeSpec((1, 2, 2, 2), node_budget=budget)
    drafter = HeadsDrafter() if draft is None else CachedHeadsDrafter(draft)
    schedule = "fused" if draft is None else "partial"
    return NamedPlan("tokenswift", schedule, budget, Plan(CONFIG, SamplingFeatures.SAMPLED, drafter, tree))


def partial(budget):
    """A plan whose draft cache is rebuilt whenever it is taken."""
    return fused(budget, DraftCacheShape(64, 4, 1, None))


def ngram(budget):
    tree = TreeSpec((), ngram_k=20, node_budget=budget)
    return NamedPlan("ngram", None, budget, Plan(CONFIG, SamplingFeatures.SAMPLED, NgramDrafter(32), tree))


class Device:
    """A device with known prices, which decodes one simulated text, a chunk ahead, as a session does.

    Args:
      prices: plain steps of an iteration of each plan.
      gain: (plan, position) -> tokens of an iteration that begins there.
      foreseen: (plan, position read) -> foreseen tokens, None where nothing tells them.
      believed: prices as they were measured before; None: the true ones.
      step: seconds of a plain step; `slower` multiplies all times from a position on.
      noise: chunks take up to this share more, at random.
      overhead: seconds of a chunk that does not run ahead.
      measured: whether the prices were measured before.
    """

    def __init__(
        self, prices, gain, foreseen, *, believed=None, tokens=256, step=0.03, noise=0.0, seed=0, slower=(None, 1.0),
        catch_up=0.0, remembered=True, always=False, overhead=OVERHEAD, measured=True,
    ):  # fmt: skip
        self.prices, self.gain, self.foreseen, self.step = prices, gain, foreseen, step
        self.total, self.noise, self.slower, self.catch_up = tokens, noise, slower, catch_up
        self.random = np.random.default_rng(seed)
        self.known = {named: deque([price], 5) for named, price in (believed or prices).items()}
        self.read, self.remembered, self.stored_step = 0, remembered, step
        self.overhead, self.measured = overhead, measured
        self.chooser = Chooser(PLAIN, list(prices), tokens, self, drafts_always=always)

    # Knowledge

    def price(self, named):
        return median_low(self.known[named])

    def is_measured(self, named):
        return self.measured

    def tokens(self, named):
        return self.foreseen(named, self.read)

    def is_remembered(self, named):
        return self.remembered

    def is_live(self, named):
        return named.mode == "ngram"

    def plain_seconds(self):
        return self.stored_step

    def learn_price(self, named, price):
        self.known[named].append(price)
        self.measured = True

    def learn_plain(self, seconds):
        pass

    # The run

    def run(self):
        """Speed relative to plain decoding, whose first chunk does not run ahead either, and the chunks: plan, first
        position, tokens, iterations."""
        for named in self.prices:
            self.chooser.admit(named)
        position, clock, log, ready = 0, 0.0, [], None

        def send(alone):
            nonlocal position
            named, most = self.chooser.next_plan()
            begun, iterations = position, 0
            while position < self.total and position - begun < CHUNK and (most is None or iterations < most):
                gain = 1 if named is PLAIN else self.gain(named, position)
                position, iterations = min(position + gain, self.total), iterations + 1
            slow = self.slower[1] if self.slower[0] is not None and begun >= self.slower[0] else 1.0
            seconds = iterations * self.step * slow * (1.0 if named is PLAIN else self.prices[named])
            seconds *= 1 + self.noise * self.random.random()
            return named, begun, position - begun, iterations, seconds + self.overhead * alone

        chunk = send(True)
        ready, catch_up = chunk[0], 0.0
        while chunk[2]:
            runs_ahead = self.chooser.next_plan()[0] is ready and not self.chooser.reads_first
            ahead = send(False) if runs_ahead else None
            named, begun, tokens, iterations, seconds = chunk
            clock += seconds + catch_up
            self.read = begun + tokens
            self.chooser.observe(named, tokens, iterations, seconds, catch_up)
            log.append((named, begun, tokens, iterations))
            catch_up = 0.0
            if ahead is None:
                ahead = send(True)
                cached = ahead[0].schedule == "partial"
                catch_up, ready = self.catch_up * self.step * (cached and ahead[0] is not ready), ahead[0]
            chunk = ahead
        return (self.total * self.step + self.overhead) / clock, log

    def best(self):
        """The speed of the best single plan, plain decoding among them."""
        speeds = [1.0]
        for named, price in self.prices.items():
            position = iterations = 0
            while position < self.total:
                position, iterations = position + self.gain(named, position), iterations + 1
            speeds.append(self.total / (iterations * price))
        return max(speeds)


def ngrams(prices=CPU):
    """N-gram plans."""
    return {ngram(budget): price for budget, price in prices.items()}


def heads(prices=CPU):
    """Plans with heads."""
    return {fused(budget): price for budget, price in prices.items()}


def emitted(text, first, nodes, slots=32):
    """Tokens of an iteration with n-grams at each root from position `first` on, with the table of that moment."""
    known, found = {}, {}
    for root in range(CHAIN, len(text)):
        own, rest = known.setdefault(text[root - CHAIN], {}), tuple(text[root - CHAIN + 1 : root + 1])
        if rest not in own and len(own) == slots:
            del own[min(own, key=own.__getitem__)]
        own[rest] = own.get(rest, (0, 0))[0] + 1, root
        if root < first:
            continue
        own = known.get(text[root], {})
        drafts = sorted(own, key=own.__getitem__, reverse=True)[: max(1, nodes // CHAIN)]
        follows = text[root + 1 : root + 1 + min(CHAIN, nodes)]
        agreed = [sum(draft[:n] == tuple(follows[:n]) for n in range(1, len(follows) + 1)) for draft in drafts]
        found[root] = 1 + max(agreed, default=0)
    return found


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Prices of SmolLM2 on two cores: of 3 nodes, medians of `benchmarks/2026-11-26-tasks-cpu.jsonl`.
NGRAM_PRICES, HEAD_PRICES = {1: 1.28, 3: 1.42, 7: 1.75}, {1: 1.35, 3: 1.6, 7: 2.0}
# Tokens an iteration of heads on earlier texts: none, those of an ordinary mixture, and those of hard texts.
EARLIER = (None, {1: 1.35, 3: 1.7, 7: 1.85}, {1: 1.1, 3: 1.15, 7: 1.2})


# The demo: a plain step of 0.4 ms; iterations of real texts took so many of them on two cores.
DEMO_STEP, DEMO_NGRAM_PRICES, DEMO_HEAD_PRICES = 0.0004, {1: 1.35, 3: 1.5, 7: 2.0}, {1: 1.55, 3: 2.15, 7: 3.2}
DEMO_EARLIER = (None, {1: 1.7, 3: 2.4, 7: 2.8})


def stored_texts(file="2026-11-26-policy-texts.json"):
    """Texts of SmolLM2, or of another model, by name, as benchmarks/README.md says."""
    return json.loads((BENCHMARKS / file).read_text(encoding="utf-8"))


def decoding(stored, prices, head_prices=None, earlier=None, tokens=None, step=STEP, **device):
    """A device that decodes a stored text, where drafts come true as they do in it.

    Args:
      stored: one of `stored_texts`.
      prices, head_prices: by nodes, of the n-gram plans and of the plans with heads; None: without heads.
      earlier: tokens of an iteration of heads on earlier texts, by nodes; None: the prompt alone tells.
      tokens: the text's first tokens; None: all.
      step: seconds of a plain step.
      device: other arguments of `Device`.
    """
    first, text = len(stored["prompt"]), stored["prompt"] + stored["ids"]
    gains = {nodes: emitted(text, first, nodes) for nodes in prices}
    rests = {nodes: _rests(stored["heads"][str(nodes)]) for nodes in head_prices or ()}
    foresight, known = NgramForesight([text[: first + 1]], [0], prices, 20, 32), first + 1

    def foreseen(named, read):
        nonlocal known
        foresight.read(0, text[known : first + 1 + read])
        known = first + 1 + read
        ngram_tokens = foresight.tokens_an_iteration(named.node_budget)
        if named.mode == "ngram":
            return ngram_tokens
        own = [stored["counted"].get(str(named.node_budget)), earlier and earlier[named.node_budget]]
        own = [value for value in own if value]
        return max(*own, ngram_tokens) if own else None  # as `Planner.tokens`

    def gain(named, position):
        if named.mode == "ngram":
            return gains[named.node_budget][first + position]
        return rests[named.node_budget][position]

    plans = ngrams(prices) | heads(head_prices or {})
    most = len(stored["ids"]) - 1
    known_before = earlier is not None
    return Device(plans, gain, foreseen, tokens=min(tokens or most, most), step=step, remembered=known_before, **device)


def _rests(iterations):
    """Tokens from each position to the end of the iteration that it was decoded in: an iteration of heads that begins
    there emits about so many."""
    return [rest for tokens in iterations for rest in range(tokens, 0, -1)]


def replayed(earlier):
    """Speeds on every stored text with heads and n-grams: relative to plain decoding, and to the best single plan."""
    speeds = {}
    for name, stored in stored_texts().items():
        for tokens in (127, 255):
            if tokens < len(stored["ids"]):
                device = decoding(stored, NGRAM_PRICES, HEAD_PRICES, earlier, tokens)
                speed, _ = device.run()
                speeds[name, tokens] = speed, speed / device.best()
    return speeds


def demo_replayed(earlier):
    """As `replayed`, on the demo's texts."""
    speeds = {}
    for name, stored in stored_texts("2026-11-27-policy-texts-demo.json").items():
        device = decoding(stored, DEMO_NGRAM_PRICES, DEMO_HEAD_PRICES, earlier, step=DEMO_STEP)
        speed, _ = device.run()
        speeds[name] = speed, speed / device.best()
    return speeds


def main(changes):
    """Prints the least and the mean speeds with changed constants of the policy."""
    for change in changes:
        name, value = change.split("=")
        module = next(module for module in (adaptive, draft_evidence) if hasattr(module, name))
        setattr(module, name, type(getattr(module, name))(value))
    runs = [("SmolLM2", replayed, earlier) for earlier in EARLIER]
    for model, replay, earlier in [*runs, *(("demo", demo_replayed, earlier) for earlier in DEMO_EARLIER)]:
        plain, best = np.array(list(replay(earlier).values())).T
        print(
            f"{model}, heads before: {earlier}; of plain decoding {plain.min():.3f}; "
            f"of the best plan {best.min():.3f}, on average {best.mean():.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
