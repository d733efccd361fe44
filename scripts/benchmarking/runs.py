"""One timed run of this package."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tokenswift_jax.engine.session import Session
from tokenswift_jax.model import Model
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.token_log import PREFILL_OFFSET, TokenLog, concatenate


@dataclass(frozen=True)
class Run:
    """What one run took; of this package or of another.

    Attributes:
      token_ids: everything generated, the token that prefill gave first.
      decode_seconds: time of all tokens but those of prefill; compilation excluded.
      wall_seconds: from the first token to the last, compilation excluded: decode_seconds and whatever was done
        between chunks to change the plan.
      iterations: passes of the target after prefill.
      prefill_seconds: from the call to the first token, compilation excluded.
      compile_seconds: spent compiling.
      schedule_trace: which plan ran from which token on.
      prefill_tokens: how many tokens came with prefill; more than 1 only where another package drafts in it.
      records: what is known of each token, for sections that look closer; those of prefill have no time.
    """

    token_ids: list[int]
    decode_seconds: float
    wall_seconds: float
    iterations: int
    prefill_seconds: float
    compile_seconds: float
    schedule_trace: list[dict[str, Any]] = field(default_factory=list)
    prefill_tokens: int = 1
    records: TokenLog | None = None

    @property
    def decoded_tokens(self) -> int:
        """Tokens whose time `decode_seconds` is."""
        return len(self.token_ids) - self.prefill_tokens

    @property
    def ms_per_token(self) -> float:
        """Milliseconds a decoded token."""
        return 1e3 * self.decode_seconds / self.decoded_tokens

    @property
    def wall_ms_per_token(self) -> float:
        """Milliseconds a decoded token, changes of plan included."""
        return 1e3 * self.wall_seconds / self.decoded_tokens

    @property
    def tokens_per_iteration(self) -> float:
        """Decoded tokens a pass of the target."""
        return self.decoded_tokens / self.iterations


def run_ours(
    model: Model,
    prompt: list[int],
    sampling: SamplingConfig,
    speculation: SpeculationConfig,
    new_tokens: int,
    capacity: int | None = None,
) -> Run:
    """Generates exactly `new_tokens` tokens after one prompt; EOS does not end the text."""
    run = Session(model, [Request(prompt, sampling, new_tokens)], speculation, capacity=capacity)
    parts: list[TokenLog] = []
    begun, compiled_before = 0.0, 0.0
    for step in run:
        row = step.rows[0]
        if not parts:
            begun, compiled_before = time.perf_counter(), run.compile_seconds
        parts.append(row.log)
    wall_seconds = time.perf_counter() - begun - (run.compile_seconds - compiled_before)
    run.close()
    records = concatenate(parts)
    assert len(records) == new_tokens, f"{len(records)} tokens instead of {new_tokens}"
    assert not (records.offsets[1:] == PREFILL_OFFSET).any()
    return Run(
        token_ids=records.token_ids.tolist(),
        decode_seconds=float(records.seconds.sum()),
        wall_seconds=wall_seconds,
        iterations=int((records.offsets == 0).sum()),
        prefill_seconds=run.prefill_seconds,
        compile_seconds=run.compile_seconds,
        schedule_trace=list(run.schedule_trace),
        records=records,
    )
