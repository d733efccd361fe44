"""The settings of a training run: every choice that decides its result, as a frozen dataclass."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from tokenswift_jax.errors import UserError, check_whole, read_from
from tokenswift_jax.text.reading import decode, json_fault

WHAT = ("heads", "all")
HEAD_TYPES = ("sequential", "chained", "medusa")
REMAT = ("none", "layers", "offload")
SCHEDULES = ("cosine", "linear", "constant")
# Of SmolLM2's 49,152 tokens, the 16,384 most frequent ones of ten books are 98.4% of those books and 96.4% of three
# held-out ones; 8,192 are 94.0% and 91.3% (public-domain novels, 3.3M tokens).
DRAFT_VOCAB = 16384
# Fields that may differ when a run is resumed: they decide when the run saves or evaluates, and on which devices it
# runs, not what it learns.
FREE = ("save_steps", "evaluate_steps", "evaluate_prompts", "evaluate_tokens", "mesh", "devices")


@dataclass(frozen=True)
class TrainingSettings:
    """The choices of a run; the defaults are the paper's recipe (Table 9), except batch size and stopping.

    Attributes:
      what: `heads` freezes the backbone; `all` trains it too, on the next token.
      heads: number of draft heads; a head reads the hidden state of a token, and head i (from 1) guesses the token
        i + 1 after it.
      head_type: `sequential` heads see the token just above their guess, `chained` heads (the paper's) do not; `medusa`
        heads are those that `convert.export --heads medusa` can write for other programs.
      draft_vocab: number of tokens that the heads score, the most frequent ones of the training text; 0 for all; None
        keeps the vocabulary of heads whose training continues, and for fresh heads means `DRAFT_VOCAB`.
      max_length: tokens a row.
      batch_size: rows a micro-batch.
      gradient_accumulation_steps: micro-batches a step.
      max_steps, epochs: the end of the run, in steps or in passes over the data; one of them is None.
      learning_rate, head_learning_rate: peak rate, and the heads' own peak rate under `all`; None for the same.
      warmup_steps: steps of the linear warm-up.
      lr_schedule: the rate after the warm-up: `cosine` or `linear` to zero at the last step, or `constant` (for a run
        that another run continues).
      weight_decay, head_weight_decay: decoupled decay of matrices only, and that of the heads; None for the same.
      betas, clip_norm: Adam's betas, and the global norm to which the optimizer clips gradients, separately for heads
        and backbone.
      distill_weight: share of the heads' loss against the target's own distribution; the rest is cross entropy against
        the text (the paper: 0).
      distill_temperature: divides the logits of both in that share; its square multiplies the loss.
      head_loss_weight: weight of the heads' losses beside the next-token loss under `all`; with 0 the backbone gets no
        gradient from them.
      head_stride: heads learn from one position in this many, at another offset each step.
      draft_cache_prob: share of steps where the heads read hidden states computed over the draft cache (`draft_cache`
        slots, `draft_sinks` of them fixed) instead of the full cache.
      draft_cache, draft_sinks: slots of the draft cache, and how many of them contain the first positions.
      skip_share: share of the rows that get one jump in their positions, so that far positions occur (positional
        skip-wise training; Zhu et al. 2023).
      self_distill: number of texts that the target itself writes for training; 0 trains on the data's own texts.
      self_distill_prompt: most tokens of the prompts that begin those texts; None for an eighth of `max_length`. A
        document with fewer tokens is a prompt as a whole, without its last token.
      keep_states: whether a file keeps the backbone's hidden states over each row, so that later epochs do not run the
        frozen backbone again.
      loss_chunk: positions of a row with logits in memory at one time.
      remat: what a layer keeps for the backward pass: everything, its input, or its input in host memory.
      dtype: dtype of the forward and backward passes; None is bfloat16 on accelerators, float32 on CPU. Masters are
        float32.
      seed: seed of the heads' first values, of the order of the data and of all draws.
      save_steps: steps between checkpoints.
      evaluate_steps: steps between evaluations; None evaluates only at the end, 0 never (and finds no node sets).
      evaluate_prompts, evaluate_tokens: held-out prompts of an evaluation, and tokens that the target writes after
        each.
    """

    what: str = "heads"
    heads: int = 3
    head_type: str = "sequential"
    draft_vocab: int | None = None
    max_length: int = 8192
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_steps: int | None = None
    epochs: int | None = 1
    learning_rate: float = 5e-3
    head_learning_rate: float | None = None
    warmup_steps: int = 50
    lr_schedule: str = "cosine"
    weight_decay: float = 0.1
    head_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    head_loss_weight: float = 1.0
    head_stride: int = 1
    draft_cache_prob: float = 0.0
    draft_cache: int = 4096
    draft_sinks: int = 16
    skip_share: float = 0.0
    self_distill: int = 0
    self_distill_prompt: int | None = None
    keep_states: bool = False
    loss_chunk: int = 512
    remat: str = "none"
    dtype: str | None = None
    seed: int = 0
    save_steps: int = 100
    evaluate_steps: int | None = None
    evaluate_prompts: int = 4
    evaluate_tokens: int = 128

    def __post_init__(self) -> None:
        for name, known in (("what", WHAT), ("head_type", HEAD_TYPES), ("remat", REMAT), ("lr_schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}", arguments=(name,))
        if (self.max_steps is None) == (self.epochs is None):
            raise UserError(
                "give max_steps or epochs, not both: one of them ends the run", arguments=("max_steps", "epochs")
            )
        least = {"heads": 1, "max_length": 8, "batch_size": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0}
        least |= {"head_stride": 1, "draft_cache": 32, "draft_sinks": 0, "self_distill": 0, "loss_chunk": 1, "seed": 0}
        least |= {"save_steps": 1, "evaluate_prompts": 1, "evaluate_tokens": 8}
        least |= {name: 0 for name in ("draft_vocab", "evaluate_steps") if getattr(self, name) is not None}
        others = ("max_steps", "epochs", "self_distill_prompt")
        least |= {name: 1 for name in others if getattr(self, name) is not None}
        for name, low in least.items():
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low))
        if self.seed >= 2**32:  # jax.random takes as many bits
            raise UserError(f"seed is {self.seed}; it must be a whole number from 0 to {2**32 - 1}", ("seed",))
        for name in ("learning_rate", "clip_norm", "distill_temperature"):
            self._number(name, None, above=True)
        for name in ("weight_decay", "head_weight_decay", "head_learning_rate", "head_loss_weight"):
            self._number(name, None)
        for name in ("distill_weight", "draft_cache_prob", "skip_share"):
            self._number(name, 1.0)
        object.__setattr__(self, "betas", _betas(self.betas))
        if self.max_length < self.heads + 2:
            raise UserError(
                f"max_length {self.max_length} is too short for {self.heads} heads: at least {self.heads + 2}",
                arguments=("max_length",),
            )
        if self.draft_cache < self.draft_sinks + 16:
            raise UserError(
                f"draft_cache is {self.draft_cache}; it must hold draft_sinks + 16 or more",
                arguments=("draft_cache", "draft_sinks"),
            )
        if self.draft_cache_prob and self.draft_cache >= self.max_length:
            raise UserError(
                f"draft_cache {self.draft_cache} holds every row of max_length {self.max_length}: looking through it "
                "would show no less; choose a smaller draft_cache or a larger max_length",
                arguments=("draft_cache", "max_length", "draft_cache", "max_length"),
            )
        if self.what == "all" and self.self_distill:
            raise UserError(
                "self_distill trains on the target's own text, so the target must not train: what must be heads",
                arguments=("self_distill", "what"),
            )
        if self.self_distill_prompt is not None and not self.self_distill:
            raise UserError(
                "self_distill_prompt without self_distill: it sizes the prompts of texts that the target writes",
                arguments=("self_distill_prompt", "self_distill"),
            )
        if (self.self_distill_prompt or 0) >= self.max_length:
            raise UserError(
                f"self_distill_prompt {self.self_distill_prompt} leaves no token of max_length {self.max_length} to "
                "the target; choose a shorter prompt",
                arguments=("self_distill_prompt", "max_length"),
            )
        if not isinstance(self.keep_states, bool):
            raise UserError(f"keep_states is {self.keep_states!r}; it must be true or false")
        if self.keep_states and (self.what == "all" or self.draft_cache_prob or self.skip_share):
            raise UserError(
                "keep_states needs the same hidden states in every epoch: what must be heads, draft_cache_prob and "
                "skip_share 0",
                arguments=("keep_states", "what", "draft_cache_prob", "skip_share"),
            )

    def _number(self, name: str, high: float | None, *, above: bool = False) -> None:
        """Checks a number from 0 (or above it) to `high`, and makes it one that JSON can store."""
        value = getattr(self, name)
        if value is None and name.startswith("head_"):
            return
        if not _is_number(value):
            raise UserError(f"{name} is {value!r}; it must be a finite number", arguments=(name,))
        if value < 0 or (above and value == 0) or (high is not None and value > high):
            kind = "above" if above else "at least"
            raise UserError(
                f"{name} is {value!r}; it must be {kind} 0" + ("" if high is None else f", at most {high:g}"),
                arguments=(name,),
            )
        object.__setattr__(self, name, value if isinstance(value, int) else float(value))

    @property
    def head_fields(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` with the heads of this run."""
        return {"num_draft_heads": self.heads, "draft_head_type": self.head_type}

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads, padding included."""
        return self.batch_size * self.gradient_accumulation_steps * self.max_length

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON stores them."""
        return asdict(self) | {"betas": list(self.betas)}


def read_settings(config: Path | None, given: Mapping[str, Any]) -> TrainingSettings:
    """The settings of a configuration file (a JSON object of `TrainingSettings` fields); `given` fields override it.

    Raises:
      UserError: not a JSON object, an unknown field, or a value out of range.
    """
    chosen: dict[str, Any] = {}
    if config is not None:
        try:
            chosen = json.loads(decode(config.read_bytes()))
        except OSError as error:
            raise UserError(f"cannot read the configuration {config}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read the configuration {config}: {json_fault(error)}") from None
        if not isinstance(chosen, dict):
            raise UserError(f"{config} must hold a JSON object of training settings")
    known = {field.name for field in fields(TrainingSettings)}
    unknown = sorted({*chosen, *given} - known)
    if unknown:
        place = "" if config is None else f"{config}: "
        raise UserError(f"{place}unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    chosen |= given
    if "max_steps" in given and "epochs" not in given:
        chosen["epochs"] = None
    elif "epochs" in given and "max_steps" not in given:
        chosen["max_steps"] = None
    elif "max_steps" in chosen and "epochs" not in chosen:
        chosen["epochs"] = None
    if config is None:
        return TrainingSettings(**chosen)
    with read_from(str(config), given):
        return TrainingSettings(**chosen)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings (as JSON) that differ and decide the result of the run, with both values.

    A setting that `before` lacks has its default: the version that wrote it did not know that setting. Of another fact
    that it lacks, nothing says whether it differs.
    """
    before = {name: value for name, value in TrainingSettings().to_json().items() if name in now} | dict(before)
    names = [name for name in before if name not in FREE and before[name] != now.get(name)]
    return [f"{name} ({before.get(name)!r} then, {now.get(name)!r} now)" for name in sorted(names)]


def _betas(value: Any) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in pair):
        raise UserError(
            f"betas are {value!r:.80}; two numbers of at least 0 and below 1 are needed", arguments=("betas",)
        )
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number, of Python or of NumPy."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    number: Any = value
    return bool(-math.inf < number < math.inf)  # `isfinite` fails on whole numbers that no float holds
