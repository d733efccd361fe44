"""transformers' own generate on the same weights, timed token by token."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import tokenswift_jax as ts
from benchmarking.runs import Contender, Run
from benchmarking.texts import Prompts
from convert.export import export

LOOKUP_TOKENS = 10  # prompt_lookup_num_tokens: the value of transformers' documentation


class _Clock:
    """A streamer that records when tokens came; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass


class TransformersModel:
    """The checkpoint as transformers loads it: exported, in `model`'s dtype, on CPU with all cores."""

    def __init__(self, model: ts.Model) -> None:
        self._torch: Any = importlib.import_module("torch")  # no dependency of the project
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._torch.set_num_threads(ts.describe_environment()["cores"])
        with TemporaryDirectory() as folder:
            path = Path(folder) / "exported"
            export([str(model.path), str(path)])
            dtype = getattr(self._torch, model.dtype)
            self._model: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, local_files_only=True)
        self._model.eval()
        # Without this, transformers adds the sampling and EOS of the checkpoint's own configuration.
        self._model.generation_config = GenerationConfig(pad_token_id=0)

    def labels(self, lookup: bool) -> dict[str, Any]:
        """The fields of a row that name the contender."""
        mode = {"implementation": "transformers", "mode": "prompt_lookup" if lookup else "plain"}
        return mode | {"schedule": None, "node_budget": None, "torch_threads": self._torch.get_num_threads()}

    def contender(self, prompts: Prompts, sampling: ts.SamplingConfig, new_tokens: int, lookup: bool) -> Contender:
        """transformers' generate, plain or with prompt lookup."""
        name = "transformers, prompt lookup" if lookup else "transformers"
        return Contender(
            name, lambda i: self.run(prompts.of_round(i), sampling, new_tokens, lookup), self.labels(lookup)
        )

    def run(self, prompt: list[int], sampling: ts.SamplingConfig, new_tokens: int, lookup: bool) -> Run:
        """Generates exactly `new_tokens` tokens; its penalty has no window and covers the whole text."""
        self._torch.manual_seed(sampling.seed)
        chosen = _as_transformers(sampling) | ({"prompt_lookup_num_tokens": LOOKUP_TOKENS} if lookup else {})
        ids, clock = self._torch.tensor([prompt]), _Clock()
        begun = time.perf_counter()
        with self._torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=new_tokens,
                use_cache=True,
                streamer=clock,
                **chosen,
            )
        return timed_run(output[0, len(prompt) :].tolist(), begun, clock.times, clock.counts)


def _as_transformers(sampling: ts.SamplingConfig) -> dict[str, Any]:
    """The arguments of transformers' generate for a sampling configuration."""
    chosen: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.repetition_penalty != 1:
        chosen["repetition_penalty"] = sampling.repetition_penalty
    if sampling.suppress_tokens:
        chosen["suppress_tokens"] = list(sampling.suppress_tokens)
    if sampling.temperature > 0:
        chosen |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
        filters = {name: getattr(sampling, name) for name in ("top_p", "min_p", "eta_cutoff")}
        chosen |= {name: value for name, value in filters.items() if value is not None}
    return chosen


def timed_run(token_ids: list[int], begun: float, times: list[float], counts: list[int]) -> Run:
    """The run whose streamer was called at `times` (s) with `counts` tokens: the prompt, prefill's, each pass's."""
    assert sum(counts[1:]) == len(token_ids), "the streamer missed tokens"
    seconds = times[-1] - times[1]
    zeros = np.zeros(len(token_ids), np.int32)
    passes = [(count, end - begin) for count, begin, end in zip(counts[2:], times[1:], times[2:], strict=False)]
    offsets = [-1] * counts[1] + [index for count, _ in passes for index in range(count)]
    times_of_tokens = [0.0] * counts[1] + [time / count for count, time in passes for _ in range(count)]
    return Run(
        token_ids=token_ids,
        decode_seconds=seconds,
        wall_seconds=seconds,
        iterations=len(counts) - 2,
        prefill_seconds=times[1] - begun,
        compile_seconds=0.0,
        prefill_tokens=counts[1],
        records=ts.TokenLog(np.asarray(token_ids), zeros, np.asarray(offsets), zeros, np.asarray(times_of_tokens)),
    )
