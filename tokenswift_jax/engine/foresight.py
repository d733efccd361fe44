"""The n-gram drafts that a text would have accepted, counted on the host: no trial on the device is needed for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.speculation import SpeculationConfig

CHAIN = 3  # tokens of an n-gram draft below the root
DISCOUNT = 0.85  # weight of an iteration in an estimate, relative to the iteration after it
DOUBT = 1.0  # weight of an iteration without an accepted draft, which an estimate begins with
REPLAYED = 64  # newest tokens of a prompt that are replayed: older iterations weigh less than 0.1 in all
SPAN = 1 << 15  # newest tokens of a prompt whose continuations count: each costs the host about 2 us


def has_ngrams(named: NamedPlan) -> bool:
    """Whether n-gram chains continue the plan's root."""
    return named.plan.tree.ngram_k > 0 and named.plan.tree.keyed_by_root


class NgramForesight:
    """Reads the texts of a batch and replays n-gram drafting on them.

    A draft consists of the most frequent continuations, of `CHAIN` tokens, of the root token in the text so far (of
    equally frequent ones the newest), as `speculate.ngram` stores them on the device.

    Args:
      texts: the texts so far.
      lags: per text, the newest tokens that no continuation may contain (`SequenceParams.ngram_lag`).
      budgets: the node budgets to replay; None: no budget.
      most: the most continuations of a draft.
      slots: the most continuations of one root token; a new one replaces the rarest, of these the oldest.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        lags: Sequence[int],
        budgets: Iterable[int | None],
        most: int,
        slots: int,
    ) -> None:
        budgets = tuple(budgets)
        self._rows = [_Row(list(text), lag, budgets, most, slots) for text, lag in zip(texts, lags, strict=True)]
        self._running = set(range(len(texts)))

    @staticmethod
    def of(
        plans: Iterable[NamedPlan], speculation: SpeculationConfig, rows: Iterable[tuple[Sequence[int], int]]
    ) -> NgramForesight | None:
        """The foresight for the plans that a policy may choose, from the text and the lag of each row; None, and no row
        is asked for, where none of them drafts by n-grams."""
        budgets = {named.node_budget for named in plans if has_ngrams(named)}
        if not budgets:
            return None
        texts, lags = zip(*rows, strict=True)
        return NgramForesight(texts, lags, budgets, speculation.ngram_k, speculation.ngram_slots)

    def read(self, row: int, token_ids: Sequence[int]) -> None:
        """Appends emitted tokens to a row's text, and replays the iterations that end within them."""
        self._rows[row].read(token_ids)

    def tokens_an_iteration(self, budget: int | None) -> float:
        """Tokens that an iteration is expected to emit, from those over the newest tokens; the least of the rows."""
        return min((self._rows[row].tokens_an_iteration(budget) for row in sorted(self._running)), default=1.0)

    def end(self, row: int) -> None:
        """Leaves a finished row out of the estimates."""
        self._running.discard(row)


class _Row:
    """A text, its continuations, and the newest iterations that each node budget would have taken over it."""

    def __init__(self, text: list[int], lag: int, budgets: tuple[int | None, ...], most: int, slots: int) -> None:
        self._text, self._lag, self._slots = text, lag, slots
        self._known: dict[int, dict[tuple[int, ...], tuple[int, int]]] = {}
        self._inserted = max(CHAIN, len(text) - SPAN)
        self._position = max(0, len(text) - 1 - REPLAYED)
        # Of each budget: continuations of a draft, and tokens of each.
        self._drafts = {
            budget: (most, CHAIN) if budget is None else (max(1, min(most, budget // CHAIN)), min(CHAIN, budget))
            for budget in budgets
        }
        self._roots = dict.fromkeys(budgets, self._position)
        self._emitted = dict.fromkeys(budgets, (DOUBT, DOUBT))  # discounted: tokens, iterations
        self.read(())

    def tokens_an_iteration(self, budget: int | None) -> float:
        """The discounted mean of the iterations so far."""
        tokens, iterations = self._emitted[budget]
        return tokens / iterations

    def read(self, token_ids: Sequence[int]) -> None:
        """Appends tokens. Replays from each root whose draft cannot reach past the text."""
        self._text += token_ids
        for root in range(self._position, len(self._text) - CHAIN - 1):
            self._insert(root + 1 - self._lag)  # no continuation in the table ends after the root
            for budget, (count, depth) in self._drafts.items():
                if self._roots[budget] == root:
                    self._iterate(budget, count, depth)
            self._position = root + 1

    def _insert(self, end: int) -> None:
        """Adds the continuations that end before position `end`."""
        for position in range(self._inserted, end):
            first, *rest = self._text[position - CHAIN : position + 1]
            known, added = self._known.setdefault(first, {}), tuple(rest)
            if added not in known and len(known) == self._slots:
                del known[min(known, key=known.__getitem__)]
            known[added] = known.get(added, (0, 0))[0] + 1, position
        self._inserted = max(self._inserted, end)

    def _iterate(self, budget: int | None, count: int, depth: int) -> None:
        root = self._roots[budget]
        known = self._known.get(self._text[root])
        emitted = 1
        if known:
            rank = known.__getitem__
            drafts = (max(known, key=rank),) if count == 1 else sorted(known, key=rank, reverse=True)[:count]
            follows = self._text[root + 1 : root + 1 + depth]
            emitted += max([_agreeing(draft, follows) for draft in drafts])
        self._roots[budget] = root + emitted
        tokens, iterations = self._emitted[budget]
        self._emitted[budget] = DISCOUNT * tokens + emitted, DISCOUNT * iterations + 1


def _agreeing(draft: Sequence[int], text: Sequence[int]) -> int:
    """The number of leading tokens that two sequences share."""
    shared = 0
    for drafted, token in zip(draft, text, strict=False):
        if drafted != token:
            break
        shared += 1
    return shared
