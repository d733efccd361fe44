"""Timed runs: one text of this package or of another, and contenders that take turns in interleaved rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tokenswift_jax as ts

_WARM_UPS = 4  # `auto` may run a plan in a later run that it did not try in the first


@dataclass(frozen=True)
class Run:
    """The times of one run.

    Attributes:
      token_ids: all generated tokens, that of prefill first.
      decode_seconds: time of all tokens but those of prefill; compilation excluded.
      wall_seconds: from the first token to the last, compilation excluded: also the host's work between chunks.
      iterations: passes of the target after prefill.
      prefill_seconds: from the call to the first token, compilation excluded.
      compile_seconds: of the whole call.
      prefill_tokens: tokens that came with prefill; more than 1 only where another package drafts in it.
      records: one entry a token; those of prefill have no time.
      result: the statistics of a text of this package.
    """

    token_ids: list[int]
    decode_seconds: float
    wall_seconds: float
    iterations: int
    prefill_seconds: float
    compile_seconds: float
    prefill_tokens: int = 1
    records: ts.TokenLog | None = None
    result: ts.GenerationResult | None = None

    @property
    def decoded_tokens(self) -> int:
        """Tokens that `decode_seconds` is the time of."""
        return len(self.token_ids) - self.prefill_tokens

    @property
    def ms_per_token(self) -> float:
        """Milliseconds a decoded token."""
        return 1e3 * self.decode_seconds / self.decoded_tokens

    @property
    def wall_ms_per_token(self) -> float:
        """Milliseconds a decoded token, the host's work between chunks included."""
        return 1e3 * self.wall_seconds / self.decoded_tokens

    @property
    def tokens_per_iteration(self) -> float:
        """Decoded tokens a pass of the target."""
        return self.decoded_tokens / self.iterations


def run_ours(
    model: ts.Model,
    prompt: list[int],
    sampling: ts.SamplingConfig,
    speculation: ts.SpeculationConfig,
    new_tokens: int,
    capacity: int | None = None,
    audit: bool = False,
) -> Run:
    """Generates exactly `new_tokens` tokens after one prompt; EOS does not end the text."""
    options: dict[str, Any] = {"ignore_eos": True, "stop": [], "capacity": capacity, "audit": audit}
    times, result = [], None
    for event in ts.stream(model, prompt, sampling, speculation, max_new_tokens=new_tokens, **options):
        result = event.result or result
        if len(event.records):
            times.append(time.perf_counter())
    assert result is not None
    assert result.generated_tokens == new_tokens, f"{result.generated_tokens} tokens instead of {new_tokens}"
    assert result.records is not None
    assert (result.records.offsets[1:] >= 0).all(), "only the first token comes with prefill"
    return Run(
        token_ids=result.token_ids,
        decode_seconds=result.decode_seconds,
        # After a warm-up, prefill compiles nothing: only a new plan of `auto` compiles, after the first token.
        wall_seconds=times[-1] - times[0] - result.compile_seconds,
        iterations=result.iterations,
        prefill_seconds=result.prefill_seconds,
        compile_seconds=result.compile_seconds,
        records=result.records,
        result=result,
    )


@dataclass(frozen=True)
class Contender:
    """Something to measure.

    Attributes:
      name: unique within its setting.
      run: the timed run of a round.
      labels: fields of its rows.
      fixed: it runs one program, so that nothing may compile after the warm-up.
    """

    name: str
    run: Callable[[int], Run]
    labels: dict[str, Any]
    fixed: bool = True


@dataclass(frozen=True)
class Results:
    """The runs of one setting, by contender; entry i of each list is round i.

    Attributes:
      runs: the timed ones.
      warm_up_compile_seconds: spent compiling before them, by contender.
    """

    runs: dict[str, list[Run]]
    warm_up_compile_seconds: dict[str, float]


def play(
    contenders: Sequence[Contender], rounds: int, report: Callable[[str], None], warm: Collection[str] = ()
) -> Results:
    """Warms every contender up but those named in `warm`, then runs them round robin, so that a slow phase of the
    machine meets all of them; the order turns by one place a round.

    Raises:
      RuntimeError: a fixed contender compiled after its warm-up, and that time would count as decoding.
    """
    compile_seconds = dict.fromkeys(warm, 0.0)
    for contender in (contender for contender in contenders if contender.name not in warm):
        report(f"warm-up: {contender.name}")
        spent = [contender.run(0).compile_seconds]
        while not contender.fixed and spent[-1] and len(spent) < _WARM_UPS:
            spent.append(contender.run(len(spent)).compile_seconds)
        compile_seconds[contender.name] = sum(spent)
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        turn = index % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            run = contender.run(index)
            if contender.fixed and run.compile_seconds:
                raise RuntimeError(f"{contender.name} compiled for {run.compile_seconds:.2f} s in a timed run")
            report(f"round {index + 1} of {rounds}: {contender.name} {run.ms_per_token:.3f} ms/token")
            runs[contender.name].append(run)
    return Results(runs, compile_seconds)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median with the smallest and the largest value, rounded to 5 digits."""
    values = list(values)
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: rounded(value) for name, value in found.items()}


def rounded(value: float) -> float:
    """A figure with 5 digits."""
    return float(f"{value:.5g}")


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of runs of the same round: drift between rounds drops out."""
    return spread(over / under for over, under in zip(numerators, denominators, strict=True))
