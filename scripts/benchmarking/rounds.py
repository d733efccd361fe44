"""Interleaved rounds: every contender runs once a round, so that whatever slows the machine slows them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarking.runs import Run

_WARM_UPS = 4  # `auto` may meet a plan in a later run that it did not try in the first


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


def play(contenders: Sequence[Contender], rounds: int, report: Callable[[str], None]) -> Results:
    """Warms every contender up, then runs them round robin; the order turns by one place a round.

    Raises:
      RuntimeError: a fixed contender compiled after its warm-up, which would be timed as decoding.
    """
    compile_seconds = {}
    for contender in contenders:
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
    return {
        "median": _rounded(statistics.median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
    }


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of runs of the same round: drift between rounds drops out."""
    return spread(over / under for over, under in zip(numerators, denominators, strict=True))


def measures(results: Results, name: str) -> dict[str, Any]:
    """The fields of a contender's row that its own runs give."""
    runs = results.runs[name]
    return {
        "runs": len(runs),
        "new_tokens": len(runs[0].token_ids),
        "ms_per_token": spread(run.ms_per_token for run in runs),
        "wall_ms_per_token": spread(run.wall_ms_per_token for run in runs),
        "tokens_per_second": spread(1e3 / run.ms_per_token for run in runs),
        "tokens_per_iteration": spread(run.tokens_per_iteration for run in runs),
        "prefill_seconds": spread(run.prefill_seconds for run in runs),
        "compile_seconds_excluded": _rounded(
            results.warm_up_compile_seconds[name] + sum(run.compile_seconds for run in runs)
        ),
    }


def same_leading_tokens(results: Results, name: str, other: str) -> int:
    """How many leading tokens two contenders share in every round."""
    return min(
        next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)) if x != y), len(a.token_ids))
        for a, b in zip(results.runs[name], results.runs[other], strict=True)
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
