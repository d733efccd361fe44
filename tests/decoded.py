"""One run to its end, with what the tests ask of it; and how two texts that should be equal are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenswift_jax.engine.session import Session
from tokenswift_jax.model import Model
from tokenswift_jax.request import Request, batch_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.token_log import RECORD, concatenate

PLAIN = SpeculationConfig(mode="autoregressive")


@dataclass(frozen=True)
class Text:
    """The tokens that a session emitted for one row: `token_log.TokenLog`, its chunks joined.

    Attributes:
      trace: the row's schedule trace.
    """

    tokens: list[int]
    sources: np.ndarray
    offsets: np.ndarray
    offered: np.ndarray
    finish: str | None
    trace: list[dict]

    @property
    def accepted_per_depth(self) -> list[int]:
        """How many iterations accepted a draft of depth 1, 2, ..."""
        drafted = self.offsets[self.sources > 0]
        return np.bincount(drafted, minlength=int(self.offered.max(initial=0))).tolist()

    @property
    def runs(self) -> list[range]:
        """The indices that each iteration emitted, prefill's token left out."""
        starts = np.flatnonzero(self.offsets == 0).tolist()
        return [range(a, b) for a, b in zip(starts, [*starts[1:], len(self.tokens)], strict=True)]


def start(
    model: Model,
    prompts: list[list[int]],
    sampling: SamplingConfig,
    speculation: SpeculationConfig,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    ignore_eos: bool = False,
    emitted: list[list[int]] | None = None,
    capacity: int | None = None,
    cache_dtype: str | None = None,
) -> Session:
    """A session of a batch with one set of settings; row i draws with `sampling.sequence` + i."""
    requests = batch_of(
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_ids=() if ignore_eos else tuple(model.eos_token_ids),
    )
    return Session(model, requests, speculation, emitted=emitted, capacity=capacity, cache_dtype=cache_dtype)


def decode_batch(
    model: Model, prompts: list[list[int]], sampling: SamplingConfig, speculation: SpeculationConfig, **limits
) -> list[Text]:
    """The texts of a batch; `limits` are the keywords of `start`."""
    return _texts(start(model, prompts, sampling, speculation, **limits), len(prompts))


def decode_requests(model: Model, requests: list[Request], speculation: SpeculationConfig) -> list[Text]:
    """The texts of a batch whose rows have their own settings."""
    return _texts(Session(model, requests, speculation), len(requests))


def _texts(running: Session, count: int) -> list[Text]:
    steps = list(running)
    texts = []
    for row in range(count):
        parts = [step.rows[row] for step in steps]
        if (error := next((part.error for part in parts if part.error), None)) is not None:
            raise error
        log = concatenate([part.log for part in parts])
        columns = [getattr(log, name) for name in RECORD]
        finish = next((part.finish for part in reversed(parts) if part.finish), None)
        texts.append(Text(columns[0].tolist(), *columns[1:], finish, running.schedule_traces[row]))
    return texts


def decode(
    model: Model, prompt: list[int], sampling: SamplingConfig, speculation: SpeculationConfig = PLAIN, **limits
) -> Text:
    """The text of one prompt."""
    return decode_batch(model, [prompt], sampling, speculation, **limits)[0]


def assert_same(actual: list[int], expected: list[int]) -> None:
    """Token equality; a difference is reported by its place, for that is where to look."""
    if actual == expected:
        return
    pairs = zip(actual, expected, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(actual), len(expected)))
    around = slice(max(first - 5, 0), first + 5)
    raise AssertionError(
        f"{len(actual)} and {len(expected)} tokens differ from index {first} on: "
        f"... {actual[around]} instead of ... {expected[around]}"
    )
