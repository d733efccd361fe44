"""The sampling settings of a person, and the source of each value: given, else the checkpoint's, else neutral."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tokenswift_jax.errors import UserError, is_whole, read_from
from tokenswift_jax.generation_config import FILE, sampling_defaults


@dataclass(frozen=True)
class SamplingConfig:
    """The settings of a draw from the target's logits; the defaults do not change the model's distribution.

    The processors run in this order: suppressed ids, EOS below `min_new_tokens`, penalty, temperature, top-k, top-p,
    min-p, eta_cutoff; their meaning is transformers'.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token (filters and noise then do not apply).
      top_k: keep the k most likely tokens; None keeps all.
      top_p: keep the fewest likeliest tokens whose probabilities reach this sum; None keeps all.
      min_p: keep tokens at least this fraction as likely as the likeliest; None keeps all.
      eta_cutoff: keep tokens of probability at least min(eta, sqrt(eta) * exp(-entropy)); None keeps all.
      repetition_penalty: divides a positive logit of a token in the penalty window, and multiplies a negative one.
      penalty_window: positions the penalty looks back; None is the whole text.
      min_tokens_to_keep: the fewest tokens that a filter may leave.
      suppress_tokens: ids that are never drawn.
      seed: seed of the noise, in [0, 2**32).
      sequence: numbers the texts of one seed; row i of a batch is text sequence + i.

    Raises:
      UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float = 1.0
    penalty_window: int | None = None
    min_tokens_to_keep: int = 1
    suppress_tokens: tuple[int, ...] = ()
    seed: int = 0
    sequence: int = 0

    def __post_init__(self) -> None:
        # The outer limits keep scores finite in float32.
        self._number("temperature", lambda x: x == 0 or 1e-6 <= x <= 1e6, "0 (greedy) or a number from 1e-6 to 1e6")
        self._number("top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1", optional=True)
        self._number("min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1", optional=True)
        self._number("eta_cutoff", lambda x: 0 < x < 1, "a number above 0 and below 1", optional=True)
        self._number("repetition_penalty", lambda x: 1e-6 <= x <= 1e6, "a number from 1e-6 to 1e6 (1 is off)")
        self._integer("top_k", 1, 2**31 - 1, "a whole number, 1 or above", optional=True)
        self._integer("penalty_window", 1, 2**31 - 1, "a whole number, 1 or above", optional=True)
        self._integer("min_tokens_to_keep", 1, 2**31 - 1, "a whole number, 1 or above")
        self._integer("seed", 0, 2**32 - 1, "a whole number from 0 to 4294967295")
        self._integer("sequence", 0, 2**31 - 1, "a whole number from 0 to 2147483647")
        given = self.suppress_tokens
        listed = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
        # A generator gives its ids once.
        object.__setattr__(self, "suppress_tokens", tuple(given) if listed else given)
        if not listed or any(not is_whole(token, 0) for token in self.suppress_tokens):
            raise UserError(
                f"suppress_tokens is {self.suppress_tokens!r}; it must be a list of token ids, 0 or above",
                arguments=("suppress_tokens",),
            )
        object.__setattr__(self, "suppress_tokens", tuple(int(token) for token in self.suppress_tokens))

    def _number(self, name: str, valid: Callable[[Any], bool], requirement: str, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        # The range comes first: `isfinite` fails on whole numbers that no float holds.
        if not isinstance(value, Real) or isinstance(value, bool) or not valid(value) or not math.isfinite(value):
            raise UserError(f"{name} is {value!r}; it must be {requirement}", arguments=(name,))
        object.__setattr__(self, name, float(value))

    def _integer(self, name: str, low: int, high: int, requirement: str, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if not is_whole(value, low) or value > high:
            raise UserError(f"{name} is {value!r}; it must be {requirement}", arguments=(name,))
        object.__setattr__(self, name, int(value))


def check_vocabulary(config: SamplingConfig, vocab: int) -> None:
    """Raises UserError when `suppress_tokens` names ids outside a vocabulary of `vocab` tokens, or all of them."""
    outside = sorted({token for token in config.suppress_tokens if token >= vocab})
    if outside:
        raise UserError(
            f"suppress_tokens has ids outside the vocabulary: {outside}; the last id is {vocab - 1}",
            arguments=("suppress_tokens",),
        )
    if len(set(config.suppress_tokens)) == vocab:
        raise UserError(
            f"suppress_tokens names all {vocab} tokens of the vocabulary; leave at least one",
            arguments=("suppress_tokens",),
        )


_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "eta_cutoff")  # a greedy text has no use for them


def resolve_sampling(
    given: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None,
    recorded: Mapping[str, Any] | None = None,
) -> SamplingConfig:
    """The settings with each field as given, else as in the checkpoint's generation_config.json, else neutral.

    Without `do_sample` in that file the text is greedy, as in transformers, unless a temperature or a filter is given.

    Args:
      given: fields of `SamplingConfig` that a person set; HF's neutral spellings (top_k 0, eta_cutoff 0) mean off.
      generation_config: the parsed file, or None where there is none.
      recorded: all fields of the run that this one continues, which then count in place of the file's; None: it
        continues none.

    Raises:
      UserError: a value is out of range, or generation_config asks for an unsupported setting.
    """
    asked = any(given.get(name) is not None for name in _OF_SAMPLING)
    others = sampling_defaults(generation_config or {}, asked=asked) if recorded is None else recorded
    chosen = {**others, **given}
    for name in ("top_k", "eta_cutoff"):
        if _is_zero(chosen.get(name)):
            chosen[name] = None
    with read_from(FILE, given):
        return SamplingConfig(**chosen)


def _is_zero(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == 0
