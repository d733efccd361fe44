"""The class of models for lm-evaluation-harness, registered there as `tokenswift`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from tokenswift_jax.api import generate
from tokenswift_jax.errors import UserError, is_whole
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.harness.continuations import continuation_scores
from tokenswift_jax.model import load
from tokenswift_jax.prompt import encode, render_chat
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig

_CPU_ROWS, _ACCELERATOR_ROWS = 2048, 8192
_TEXTS = 8  # that decode together
_UNASKED = "cuda:0"
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
_NO_SETTING = {"do_sample", "until", "max_gen_toks"}
# Arguments of other models of the harness, and settings of their searches, that ask for nothing here.
_NEUTRAL = [
    *(("trust_remote_code", value) for value in (True, False, None)),
    *(("revision", "main"), ("num_beams", 1), ("num_return_sequences", 1)),
]
_LOG = logging.getLogger(__name__)


@register_model("tokenswift")
class TokenSwiftLM(TemplateLM):
    """A checkpoint of this package, scored and continued in this process.

    Tokens, windows and truncation are those of the harness's `hf` model. `generate_until` decodes as `generate` does:
    a text is that of plain decoding.

    Args:
      pretrained: as `load` takes it; None: the bundled demo.
      dtype: type of weights and activations; None: the checkpoint's own, float32 on CPU.
      mesh: as `load` takes it.
      mode: how `generate_until` drafts.
      batch_size: texts at once, or "auto": as many as give a forward enough rows, and 8 that decode together.
      max_batch_size: the most texts at once with "auto".
      max_length: positions of the longest text; None: the model's.
      add_bos_token: whether text gets a BOS token; None: as its tokenizer does.
      seed: of the texts that are not greedy; request i draws with `sequence` i.
      device: None, or what the harness's command passes when a person names none; JAX chooses the devices.

    Raises:
      UserError: as `load`; an argument is out of range.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        dtype: Any = None,
        mesh: Any = None,
        mode: str = "auto",
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        seed: int = 0,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if wrong := sorted(name for name, value in others.items() if (name, value) not in _NEUTRAL):
            raise UserError(f"the model tokenswift has no argument {', '.join(wrong)}; leave it out")
        if device not in (None, _UNASKED):
            raise UserError(f"device is {device!r}; leave it out: JAX chooses, as JAX_PLATFORMS says")
        self._most = _most_texts(batch_size, max_batch_size)
        self.model = load(pretrained or None, None if dtype == "auto" else dtype, mesh=mesh)
        self.tokenizer = self.model.tokenizer
        if self.tokenizer is None:
            raise UserError(f"{self.model.path} has no tokenizer; evaluations need one")
        longest = self.model.config.max_position_embeddings
        if max_length is not None and not (is_whole(max_length, 2) and max_length <= longest):
            raise UserError(f"max_length is {max_length!r}; it must be a whole number from 2 to {longest}")
        self.max_length = longest if max_length is None else int(max_length)
        self._speculation = SpeculationConfig(mode=mode)
        self._add_bos, self._seed = add_bos_token, seed
        if add_bos_token is not None:
            self.tokenizer.add_bos_token = bool(add_bos_token)

    max_gen_toks = 256

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: BOS, else EOS."""
        found = self.tokenizer.bos_token_id
        return self.eot_token_id if found is None else found

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.model.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; one that begins with BOS gets no other."""
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special = False
        return self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special}))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's chat template writes it; without the next turn, the last one stays open.

        A template that refuses system turns gets the others.
        """

        def written(turns: list[dict[str, str]]) -> str:
            going_on = not add_generation_prompt
            return render_chat(turns, self.tokenizer, next_turn=add_generation_prompt, continued=going_on)

        try:
            return written(chat_history)
        except UserError:
            others = [turn for turn in chat_history if turn["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            text = written(others)
            _LOG.warning("the chat template takes no system turn; it is left out")
            return text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for asked, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                what = "a window" if asked is None else f"the continuation {asked[1]!r:.60}"
                raise UserError(f"{what} has {len(continuation)} tokens; it must have 1 to {self.max_length}")
            kept = context[-(self.max_length + 1 - len(continuation)) :] or [self.prefix_token_id]
            encode([*kept, *continuation], None, self.model.config.vocab_size, name="text")  # refuses unknown ids
            pairs.append((kept, continuation))
        rows = _CPU_ROWS if jax.default_backend() == "cpu" else _ACCELERATOR_ROWS
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm) as progress:

            def done(answers: Mapping[int, tuple[float, bool]]) -> None:
                progress.update(len(answers))
                for number, answer in answers.items():
                    if (asked := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", asked, answer)

            return continuation_scores(self.model, pairs, rows, self._most, done)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows that do not overlap."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to its stops or its limit."""
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[repr(request.args[1])].append(number)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as progress:
            for numbers in alike.values():
                settings = requests[numbers[0]].args[1]
                prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                numbers.sort(key=lambda number: -len(prompts[number]))
                size = self._most or _TEXTS
                for some in (numbers[start : start + size] for start in range(0, len(numbers), size)):
                    written = self._written([prompts[number] for number in some], some, settings)
                    for number, text in zip(some, written, strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    progress.update(len(some))
        return texts

    def _written(self, prompts: list[list[int]], numbers: list[int], asked: dict[str, Any]) -> list[str]:
        """The texts after prompts that have the same settings; `numbers` are those of the requests."""
        settings = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        settings = {name: value for name, value in settings.items() if (name, value) not in _NEUTRAL}
        if unknown := sorted(set(settings) - _SAMPLING - _NO_SETTING):
            raise UserError(f"generation_kwargs has {', '.join(unknown)}, which this model does not take")
        most, until = settings["max_gen_toks"], settings["until"]
        if not 1 <= most < self.max_length:
            raise UserError(f"max_gen_toks is {most}; it must be from 1 to {self.max_length - 1}")
        given = {name: settings[name] for name in _SAMPLING & set(settings)} | {"seed": self._seed}
        if not settings["do_sample"]:
            given["temperature"] = 0.0
        elif "temperature" not in given:
            given["temperature"] = self.model.generation_config.get("temperature") or 1.0
        one = resolve_sampling(given, self.model.generation_config)
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        # A special token ends a text by itself; a stop that goes on after one cannot be reached without it.
        stops = {next((token for token in special if stop.startswith(token)), stop) for stop in until if stop}
        results = generate(
            self.model,
            [prompt[-(self.max_length - most) :] or [self.prefix_token_id] for prompt in prompts],
            [replace(one, sequence=number) for number in numbers],
            self._speculation,
            max_new_tokens=most,
            stop=sorted(stops) or None,
        )
        for result in results:
            if result.error is not None:
                raise UserError(result.error)
            if result.finish_reason == INTERRUPTED:
                raise KeyboardInterrupt
        return [result.text for result in results]


def _most_texts(batch_size: int | str, most: int | None) -> int | None:
    if str(batch_size).split(":")[0] == "auto":  # "auto:4" searches four times there; here there is no search
        if most is not None and not is_whole(most, 1):
            raise UserError(f"max_batch_size is {most!r}; it must be a whole number above 0")
        return None if most is None else int(most)
    if isinstance(batch_size, str) and batch_size.isdecimal() and len(batch_size) < 10:
        batch_size = int(batch_size)
    if not is_whole(batch_size, 1):
        raise UserError(f"batch_size is {batch_size!r}; it must be a whole number above 0, or auto")
    return int(batch_size)
