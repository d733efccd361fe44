"""The tokens an iteration that draft heads would have emitted at the end of the prompt, counted during prefill."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.prefill import Prefill
from tokenswift_jax.model import Model
from tokenswift_jax.parallel.mesh import use
from tokenswift_jax.request import Request
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plans import NamedPlan

ROOTS = 64  # roots in all rows together, or more: the share of accepted drafts then errs by about 6%
_FEWEST = 8  # roots of a row; fewer tell nothing
_NEUTRAL = Request((0,), SamplingConfig(temperature=0.0), 0)


class HeadsForesight:
    """Counts the drafts of heads that the prompt itself would have accepted.

    A prompt is not the model's own text, and a sampled text agrees with its drafts through their common noise, so the
    count is what a policy begins with; the iterations of the text correct it.
    """

    def __init__(self, model: Model, plans: Sequence[NamedPlan]) -> None:
        """plans: those that may run; the ones with draft heads are counted."""
        self._model = model
        fused = [named for named in plans if named.plan.drafter.heads_depth == 1]
        self._largest = max(fused, key=lambda named: named.plan.rows, default=None)
        self._accepted: list[np.ndarray] = []  # of each row: the tree rows of accepted drafts, [roots, depth]
        self._within: dict[int, float] = {}  # tokens an iteration within a node budget, counted from these

    @property
    def counts(self) -> bool:
        """Whether there is anything to count: the prefill must then keep its hidden states."""
        return self._largest is not None

    def count(self, prefill: Prefill, programs: CompileCache, rows: int) -> None:
        """Counts on the last positions of a finished prefill that kept its hidden states, in its first `rows` rows."""
        assert self._largest is not None
        spec, config = self._largest.plan.tree, self._model.config
        texts, depth = prefill.rooted[:rows], len(spec.widths)
        each = max(ROOTS // len(texts), _FEWEST)
        if min(map(len, texts)) - 1 - depth < _FEWEST or prefill.reused >= prefill.total:
            return
        found, places = [], []
        for text, (hidden, first) in zip(texts, prefill.hidden(rows), strict=True):
            last = len(text) - 2 - depth  # the root follows this position, and `depth` tokens the root
            begin = max(first, last + 1 - each)
            places.append(range(begin, last + 1))
            if len(places[-1]) < _FEWEST:
                return
            found.append(hidden[begin - first : last + 1 - first])
        known = [[*text[p + 1 : p + 2 + depth], 0] for text, own in zip(texts, places, strict=True) for p in own]
        spare = each * len(texts) - len(known)
        tokens = np.pad(np.asarray(known, np.int32), ((0, spare), (0, 0)))
        hidden = jnp.asarray(np.pad(np.concatenate(found), ((0, spare), (0, 0))))
        roots = each * len(texts)
        place = "neutral settings", roots, jnp.result_type(float)
        settings = self._model.once(place, lambda: sequence_params([_NEUTRAL] * roots, config.padded_vocab))
        function = self._model.program("accepted rows", spec)
        arguments = self._model.params, settings, hidden, jnp.asarray(tokens[:, 0]), jnp.asarray(tokens[:, 1:])
        with use(self._model.mesh):
            accepted = Placement(self._model.mesh).read(programs.run(function, *arguments, name="foresight"))
        ends = np.cumsum([len(own) for own in places])
        self._accepted = np.split(accepted[: ends[-1]], ends[:-1])

    def tokens_an_iteration(self, named: NamedPlan) -> float | None:
        """Tokens that an iteration of a plan with heads would have emitted, the least of the rows; None: unknown."""
        depth = named.plan.drafter.heads_depth
        if not self._accepted or depth is None:
            return None
        budget = named.plan.rows - 1
        if budget not in self._within:  # the policy asks at every chunk
            self._within[budget] = min(_iterated(accepted <= budget) for accepted in self._accepted)
        tokens = self._within[budget]
        # The backbone's own guess over a draft cache nearly always comes true, and the heads begin behind it.
        return tokens + depth - 1


def _iterated(kept: np.ndarray) -> float:
    """Tokens an iteration when each root follows the tokens that the iteration before it emitted."""
    lengths = 1 + np.cumprod(kept, axis=1).sum(axis=1)
    root = iterations = 0
    while root < len(lengths):
        root, iterations = root + int(lengths[root]), iterations + 1
    return root / iterations
