"""The fields of generation_config.json: those that this package honours, ignores, or refuses by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenswift_jax.errors import UserError, warn
from tokenswift_jax.text.reading import is_utf8

FILE = "generation_config.json"
# Fields of `sampling.SamplingConfig`.
_SAMPLING = {
    *("temperature", "top_k", "top_p", "min_p", "eta_cutoff", "repetition_penalty", "penalty_window"),
    *("min_tokens_to_keep", "suppress_tokens"),
}
_ENDS = {"eos_token_id", "min_new_tokens", "max_new_tokens", "max_length", "stop_strings"}
MAX_NEW_TOKENS = 256
"""Tokens of a text whose length neither a person nor the checkpoint chose."""
# Fields that change the text in ways that this package does not offer, with their neutral values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_ensemble_weight": (0,),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}
# Fields about other ids, caches, output, beams and drafting. This package has no beams, and drafting never changes the
# text.
_HARMLESS = {
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config"),
    *("_commit_hash", "early_stopping", "length_penalty", "renormalize_logits", "low_memory"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "use_mtp"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "speculation_type", "compile_config", "disable_compile", "continuous_batching_config"),
    *("prefill_chunk_size", "trust_remote_code", "custom_generate"),
}
_NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0, "eta_cutoff": 0, "repetition_penalty": 1}
_SHOWN = 10  # ids in a warning
DEFAULT_TOP_K = 50  # of transformers, where a checkpoint samples and names no top_k


@dataclass(frozen=True)
class Ends:
    """The ends of a text that a checkpoint asks for.

    Attributes:
      min_new_tokens: no EOS is drawn before this many tokens.
      max_new_tokens: the most tokens to generate; None: the file does not say.
      stops: strings that end the text.
      max_length: the most tokens of prompt and text together, which `max_new_tokens` overrides; None: the file does not
        say.
    """

    min_new_tokens: int
    max_new_tokens: int | None
    stops: tuple[str, ...]
    max_length: int | None = None


def warn_of_unknown(generation_config: Mapping[str, Any]) -> None:
    """Warns of fields, by name, that this package does not know; empty ones ask for nothing."""
    known = {*_SAMPLING, *_ENDS, *_UNSUPPORTED, *_HARMLESS, "do_sample"}
    unknown = [name for name, value in generation_config.items() if name not in known and value not in (None, [], {})]
    if unknown:
        warn(f"{FILE} has fields that are not known here and have no effect: {', '.join(unknown)}")


def usable(generation_config: Mapping[str, Any], vocab: int, tokenizer: Any) -> dict[str, Any]:
    """The fields without what this checkpoint has no use for, which a warning names: suppressed ids outside its
    vocabulary of `vocab` tokens, and stop strings without a tokenizer."""
    kept = dict(generation_config)
    suppressed = kept.get("suppress_tokens")
    if isinstance(suppressed, list) and all(type(token) is int for token in suppressed):
        kept["suppress_tokens"] = ids_within(suppressed, vocab, f"suppress_tokens of {FILE}") or None
    if kept.get("stop_strings") and tokenizer is None:
        warn(f"stop_strings of {FILE} have no effect: this checkpoint has no tokenizer")
        del kept["stop_strings"]
    return kept


def ids_within(ids: Sequence[int], vocab: int, name: str) -> list[int]:
    """The ids of a vocabulary; a warning names the others, which no text contains."""
    outside = [token for token in ids if not 0 <= token < vocab]
    if outside:
        listed = ", ".join(map(str, outside[:_SHOWN])) + (", ..." if len(outside) > _SHOWN else "")
        warn(f"{name} has ids outside the vocabulary of 0..{vocab - 1}, which have no effect: {listed}")
    return [token for token in ids if 0 <= token < vocab]


def is_sampled(generation_config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint samples; without `do_sample` it decodes greedily, as in transformers.

    Raises:
      UserError: `do_sample` is neither true nor false.
    """
    value = generation_config.get("do_sample")
    if value is not None and not isinstance(value, bool):
        raise UserError(f"do_sample is {value!r} in {FILE}; it must be true or false")
    return value is True


def from_generation_config(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SamplingConfig` that the file sets; neutral ones are left out, and `do_sample` false is
    temperature 0.

    Raises:
      UserError: a field that would change the text but is not supported here; the message names them all.
    """
    wrong = {
        name: generation_config[name]
        for name, neutral in _UNSUPPORTED.items()
        if generation_config.get(name) is not None and generation_config[name] not in neutral
    }
    if wrong:
        asked = ", ".join(f"{name} {value!r}" for name, value in wrong.items())
        raise UserError(f"{FILE} has values that are not supported: {asked}; remove it there")
    chosen = {name: value for name, value in generation_config.items() if name in _SAMPLING and value is not None}
    chosen = {name: value for name, value in chosen.items() if name not in _NEUTRAL or value != _NEUTRAL[name]}
    return chosen if generation_config.get("do_sample") is not False else chosen | {"temperature": 0.0}


def sampling_defaults(generation_config: Mapping[str, Any], *, asked: bool) -> dict[str, Any]:
    """The fields of `SamplingConfig` for a text without settings of its own: those of transformers for this file.

    Without `do_sample` a text is greedy. Where the file says `do_sample` and names no top_k, transformers' own default
    applies.

    Args:
      generation_config: the parsed file.
      asked: whether the caller asks for sampling, which counts more than `do_sample`.

    Raises:
      UserError: as `is_sampled` and `from_generation_config`.
    """
    chosen = from_generation_config(generation_config)
    if is_sampled(generation_config):
        return chosen if generation_config.get("top_k") is not None else {"top_k": DEFAULT_TOP_K} | chosen
    temperature = generation_config.get("temperature")
    return chosen | {"temperature": 0.0 if not asked else 1.0 if temperature is None else temperature}


def ends(generation_config: Mapping[str, Any]) -> Ends:
    """The ends that the file sets.

    Raises:
      UserError: one of them has a wrong type or is out of range.
    """
    least, most, longest = (generation_config.get(name) for name in ("min_new_tokens", "max_new_tokens", "max_length"))
    for name, value, low in (("min_new_tokens", least, 0), ("max_new_tokens", most, 1), ("max_length", longest, 1)):
        if value is not None and (type(value) is not int or value < low):
            raise UserError(f"{name} is {value!r} in {FILE}; it must be a whole number, {low} or above")
    stops = generation_config.get("stop_strings")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise UserError(f"stop_strings is {stops!r} in {FILE}; it must be a string or a list of strings, none empty")
    for stop in stops:
        if not is_utf8(stop):
            raise UserError(f"stop_strings has {stop!r} in {FILE}, which is not UTF-8 text, so no text contains it")
    return Ends(least or 0, most, tuple(stops), longest)


def default_length(generation_config: Mapping[str, Any], prompt: int, room: int) -> int | None:
    """The most tokens to generate after a prompt, as the file asks for, but no more than fit; None: it does not say.

    Args:
      generation_config: the parsed file.
      prompt: tokens of the prompt.
      room: tokens that fit after it.

    Raises:
      UserError: as `ends`.
    """
    asked = ends(generation_config)
    most = asked.max_new_tokens
    if most is None and asked.max_length is not None:
        most = asked.max_length - prompt
        if most < 1:
            warn(f"max_length {asked.max_length} of {FILE} has no effect: the prompt alone has {prompt} tokens")
            return None
    return None if most is None else max(1, min(most, room))
