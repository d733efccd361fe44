"""The line of the closing report that names the settings of a text and the source of each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tokenswift_jax.generation_config import FILE
from tokenswift_jax.sampling import SamplingConfig

_FILTERS = ("top_k", "top_p", "min_p", "eta_cutoff", "min_tokens_to_keep")
_OFF = {"min_p": 0.0, "top_p": 1.0}  # another spelling of a filter that keeps all
_ALWAYS = ("repetition_penalty", "penalty_window", "suppress_tokens", "seed", "sequence")  # a greedy text uses them too
_ENDS = {"max_new_tokens": "max_new_tokens", "min_new_tokens": "min_new_tokens", "stop": "stop_strings"}


def settings_line(
    options: argparse.Namespace, generation_config: Mapping[str, Any], sampling: SamplingConfig, resumed: bool = False
) -> str:
    """The settings that are not neutral, grouped by source: flags, generation_config.json, defaults; of the settings
    without effect only those that a person gave, with the reason.

    Args:
      options: the flags of `generate`; `sampling` contains the sampling fields that were given.
      generation_config: the checkpoint's.
      sampling: the settings used.
      resumed: whether those that were not given are of the journal.
    """
    neutral, groups = SamplingConfig(), dict[str, list[str]]()

    def add(source: str, text: str) -> None:
        groups.setdefault(source, []).append(text)

    def source_of(name: str) -> str:
        if name in options.sampling or resumed:
            return "flags" if name in options.sampling else "the journal"
        return FILE if generation_config.get(name) is not None else "defaults"

    if sampling.temperature == 0:
        decided = "temperature" in options.sampling or resumed or generation_config.get("do_sample") is not None
        why = source_of("temperature") if decided else f"{FILE} does not say do_sample"
        add(FILE if decided and why == "defaults" else why, "greedy")
    idle = _without_effect(sampling)
    for name in (*(("temperature",) if sampling.temperature else ()), *_FILTERS, *_ALWAYS):
        value = getattr(sampling, name)
        if name in idle:
            if name in options.sampling and value not in (getattr(neutral, name), _OFF.get(name)):
                add(f"no effect {idle[name]}", f"{name} {_shown(value)}")
        elif name == "temperature" or value != getattr(neutral, name):
            add(source_of(name), f"{name} {_shown(value)}")
    ends = dict(_ENDS)
    if generation_config.get("max_new_tokens") is None:
        ends["max_new_tokens"] = "max_length"
    for name, stored in ends.items():
        given, of_file = getattr(options, name), generation_config.get(stored)
        if given is None and of_file not in (None, 0, []):
            add(FILE, f"{stored} {_shown(of_file)}")
    return "settings: " + "; ".join(f"{', '.join(texts)} ({source})" for source, texts in groups.items())


def _without_effect(sampling: SamplingConfig) -> dict[str, str]:
    """The names of the settings that change nothing beside the others, and why."""
    found: dict[str, str] = {}
    if sampling.temperature == 0:
        found |= dict.fromkeys(_FILTERS, "on a greedy text")
    elif all(getattr(sampling, name) in (None, _OFF.get(name)) for name in _FILTERS[:-1]):
        found[_FILTERS[-1]] = "without a filter"
    if sampling.repetition_penalty == 1:
        found["penalty_window"] = "without a penalty"
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(list(value)) if isinstance(value, tuple | list) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
