"""What a run of the benchmark was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarking.rounds import Contender
from benchmarking.runs import run_ours
from benchmarking.texts import Prompts
from benchmarking.transformers_generate import TransformersModel
from tokenswift_jax.model import Model
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig


@dataclass(frozen=True)
class ProtocolSettings:
    """Of the section `protocol`.

    Attributes:
      prefixes, tokens: lengths in tokens; every pair is measured.
      contenders: names, in the order in which they run.
      passages: texts of each pair.
      transformers_tokens: decoded tokens of transformers' generate, at most; ratios are over equal windows.
      windows: tokens of a fine and of a coarse window of a row.
      audit: replay the texts of `tokenswift`.
    """

    prefixes: tuple[int, ...]
    tokens: tuple[int, ...]
    contenders: tuple[str, ...]
    passages: int
    transformers_tokens: int
    windows: tuple[int, int]
    audit: bool


@dataclass(frozen=True)
class AblationSettings:
    """Of the section `ablations`.

    Attributes:
      names: which.
      prefix, tokens: lengths in tokens.
      heads: a second checkpoint, compared with the first by the ablation `heads`; None leaves that out.
      ends_only: the first and the last value of each list alone.
    """

    names: tuple[str, ...]
    prefix: int
    tokens: int
    heads: Model | None
    ends_only: bool


@dataclass(frozen=True)
class Settings:
    """Sizes and contenders; lengths are in tokens.

    Attributes:
      model: the checkpoint.
      prompts: one passage a round, of the longest prefix.
      other: the same weights in transformers; None where it is not measured.
      prefixes, new_tokens, temperatures, modes: of the section `speed`.
      node_budget: of the modes tokenswift, medusa and ngram; `auto` chooses for itself.
      draft_cache: slots, of the sections `protocol` and `ablations`.
      samplings: by name, of the same two.
      long_tokens: of the section `auto-long`.
      capacities: small and large, of the section `capacity`.
      rounds: timed runs of every contender.
      seed: of every sampled text.
      protocol, ablations: what only these sections ask.
      report: says what is being done.
    """

    model: Model
    prompts: Prompts
    other: TransformersModel | None
    prefixes: tuple[int, ...]
    new_tokens: int
    temperatures: tuple[float, ...]
    modes: tuple[str, ...]
    node_budget: int
    draft_cache: int
    samplings: dict[str, SamplingConfig]
    long_tokens: int
    capacities: tuple[int, int]
    rounds: int
    seed: int
    protocol: ProtocolSettings
    ablations: AblationSettings
    report: Callable[[str], None]

    def speculation(self, mode: str) -> SpeculationConfig:
        """How a mode is measured."""
        if mode == "tokenswift":
            return SpeculationConfig(mode=mode, schedule="fused", node_budget=self.node_budget)
        if mode in ("ngram", "medusa"):
            return SpeculationConfig(mode=mode, node_budget=self.node_budget)
        return SpeculationConfig(mode=mode)

    def ours(
        self, mode: str, prompts: Prompts, temperature: float, new_tokens: int, capacity: int | None = None
    ) -> Contender:
        """A mode of this package; the default sampling of transformers without filters."""
        speculation = self.speculation(mode)
        sampling = SamplingConfig(temperature=temperature, seed=self.seed)
        labels = {
            "implementation": "tokenswift_jax",
            "mode": mode,
            "schedule": speculation.schedule if mode == "tokenswift" else None,
            "node_budget": speculation.node_budget,
        }
        return Contender(
            name=mode if capacity is None else f"{mode}, capacity {capacity:,}",
            run=lambda i: run_ours(self.model, prompts.of_round(i), sampling, speculation, new_tokens, capacity),
            labels=labels,
            fixed=mode != "auto",
        )

    def transformers(self, prompts: Prompts, temperature: float, lookup: bool) -> Contender:
        """transformers' generate, plain or with prompt lookup."""
        other = self.other
        assert other is not None
        sampling = SamplingConfig(temperature=temperature, seed=self.seed)
        return Contender(
            name="transformers, prompt lookup" if lookup else "transformers",
            run=lambda i: other.run(prompts.of_round(i), sampling, self.new_tokens, lookup),
            labels={
                "implementation": "transformers",
                "mode": "prompt_lookup" if lookup else "plain",
                "schedule": None,
                "node_budget": None,
                "torch_threads": other.threads,
            },
        )
