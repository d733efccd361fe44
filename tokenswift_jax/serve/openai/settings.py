"""The settings of a text as OpenAI's and vLLM's fields name them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenswift_jax.arguments import check_lengths
from tokenswift_jax.generation_config import ends
from tokenswift_jax.request import Request, check_drawable
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.serve.limits import Limits
from tokenswift_jax.serve.openai.errors import bad, translated
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.known_fields import HARMLESS, UNSUPPORTED
from tokenswift_jax.text.special import stop_token_ids

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

# The field of each Python argument that an error of the library may name.
NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
_WHOLE = 2**31 - 1
# Fields that keep tokens from being drawn.
KEPT_OUT = "suppress_tokens", "allowed_token_ids", "bad_words"


@dataclass(frozen=True)
class TextSettings:
    """How a text is drawn and where it ends.

    Attributes:
      sampling: its `sequence` is that of the first choice.
      seeded: whether the caller chose the seed; else it was drawn.
      ignore_eos: whether an EOS does not end the text.
      stops, stop_ids: strings and token ids that end the text.
      min_tokens: no EOS is drawn, and no stop counts, before this many tokens; None: the body does not say.
      kept_out: the field that says which tokens are never drawn, for errors.
      truncate: keep only this many of the prompt's last tokens; None: all.
      salt: K/V are shared between requests of the same salt alone.
    """

    sampling: SamplingConfig
    seeded: bool
    ignore_eos: bool
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    min_tokens: int | None
    kept_out: str
    truncate: int | None
    salt: str

    def request(
        self,
        model: Model,
        prompt_ids: list[int],
        max_tokens: int,
        choice: int,
        predicted_ids: Sequence[int] = (),
    ) -> Request:
        """The request for one choice.

        Raises:
          UserError: the settings leave nothing to draw, the body's `min_tokens` is above `max_tokens`, or a stop is
            part of a special token.
        """
        if self.min_tokens is None:  # a text that `max_tokens` ends sooner has no use for the rest of the file's
            least = min(ends(model.generation_config).min_new_tokens, max_tokens)
        else:
            least = self.min_tokens
            check_lengths(max_tokens, least)
        request = Request(
            prompt_ids=prompt_ids,
            sampling=replace(self.sampling, sequence=self.sampling.sequence + choice),
            max_new_tokens=max_tokens,
            min_new_tokens=least,
            eos_token_ids=() if self.ignore_eos else tuple(model.eos_token_ids),
            stops=self.stops,
            stop_token_ids=(*stop_token_ids(self.stops, model.tokenizer), *self.stop_ids),
            stops_from=self.min_tokens or 0,
            predicted_ids=predicted_ids,
        )
        with translated({"suppress_tokens": self.kept_out, "min_new_tokens": "min_tokens"}):
            check_drawable(request, model.config.vocab_size)
        return request


def read_settings(fields: Fields, model: Model, limits: Limits) -> TextSettings:
    """The settings of a body: its own, else the checkpoint's, as `generate` has them.

    Raises:
      ApiError: a field is wrong, or asks for what this server does not do.
      UserError: a value is out of the range that the library takes.
    """
    fields.refuse(UNSUPPORTED)
    fields.ignore(HARMLESS)
    vocab, defaults = model.config.vocab_size, ends(model.generation_config)
    given = read_sampling(fields, model, limits)
    seeded = "seed" in given
    sampling = resolve_sampling({"seed": secrets.randbits(32), **given}, model.generation_config)
    stops = fields.texts("stop", limits.stops, limits.stop_characters)
    if stops and model.tokenizer is None:
        raise bad("stop needs text, and this checkpoint has no tokenizer; leave it out", "stop")
    return TextSettings(
        sampling=sampling,
        seeded=seeded,
        ignore_eos=fields.flag("ignore_eos"),
        stops=defaults.stops if stops is None else stops,
        stop_ids=fields.ids("stop_token_ids", limits.ids, vocab) or (),
        min_tokens=fields.whole("min_tokens", 0, _WHOLE),
        kept_out=next((name for name in KEPT_OUT if fields.get(name)), KEPT_OUT[0]),
        truncate=fields.whole("truncate_prompt_tokens", 1, _WHOLE),
        salt=fields.text("cache_salt", limits.salt) or "",
    )


def read_sampling(fields: Fields, model: Model, limits: Limits) -> dict[str, Any]:
    """The fields of `SamplingConfig` that a body has, for `resolve_sampling`.

    Raises:
      ApiError: a field is wrong.
    """
    given: dict[str, Any] = {}
    ranges = {"temperature": (0, 1e6), "top_p": (0, 1), "min_p": (0, 1), "eta_cutoff": (0, 1)}
    for name, (low, high) in ranges.items():
        given[name] = fields.number(name, low, high)
    given["repetition_penalty"] = fields.number("repetition_penalty", 1e-6, 1e6)
    top_k = fields.whole("top_k", -1, _WHOLE)
    given["top_k"] = 0 if top_k == -1 else top_k
    given["penalty_window"] = fields.whole("penalty_window", 1, _WHOLE)
    given["min_tokens_to_keep"] = fields.whole("min_tokens_to_keep", 1, _WHOLE)
    suppressed = _suppressed(fields, model, limits)
    if suppressed:
        given["suppress_tokens"] = suppressed
    given["seed"] = fields.whole("seed", 0, 2**32 - 1)
    given["sequence"] = fields.whole("sequence", 0, _WHOLE - limits.runs)
    return {name: value for name, value in given.items() if value is not None}


def _suppressed(fields: Fields, model: Model, limits: Limits) -> tuple[int, ...]:
    """The ids that are never drawn: suppressed ones, those that are not allowed, bad words of one token."""
    vocab = model.config.vocab_size
    found = set(fields.ids("suppress_tokens", limits.ids, vocab) or ())
    allowed = fields.ids("allowed_token_ids", limits.ids, vocab)
    if allowed is not None:
        if not allowed:
            raise bad("allowed_token_ids is empty; name at least one token", "allowed_token_ids")
        found |= set(range(vocab)) - set(allowed)
    for word in fields.texts("bad_words", limits.ids, limits.stop_characters) or ():
        found |= _of_bad_word(word, model)
    return tuple(sorted(found))


def _of_bad_word(word: str, model: Model) -> set[int]:
    """The ids of a word that is one token, with and without a space before it."""
    if model.tokenizer is None:
        raise bad("bad_words needs text, and this checkpoint has no tokenizer", "bad_words")
    spellings = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
    found = {ids[0] for ids in spellings if len(ids) == 1}
    if len(spellings[0]) != 1:
        raise bad(f"bad_words: {word!r:.80} is not one token; only words of one token can be kept out", "bad_words")
    return found
