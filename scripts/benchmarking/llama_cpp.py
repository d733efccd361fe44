"""llama.cpp's server on GGUF files, by the package `xllamacpp`, timed by its own clock."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import tokenswift_jax as ts
from benchmarking.rows import LLAMA
from benchmarking.runs import Contender, Run
from benchmarking.texts import Prompts
from tokenswift_jax.hardware.environment import usable_cores


class LlamaModel:
    """One GGUF file in llama.cpp, on CPU with all cores; its cache is in float16, its own default."""

    def __init__(self, file: Path, positions: int) -> None:
        """positions: the longest text. Raises UserError without the package or the file."""
        try:
            llama: Any = importlib.import_module("xllamacpp")  # no dependency of the project
        except ImportError:
            raise ts.UserError("llama.cpp is measured by the package xllamacpp: pip install xllamacpp") from None
        if not file.is_file():
            raise ts.UserError(f"{file} is not a file")
        asked = llama.CommonParams()
        asked.model.path, asked.n_ctx, asked.n_parallel = str(file), positions, 1
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = usable_cores()
        asked.verbosity, asked.warmup = -1, False
        self.name = f"{LLAMA}, {file.stem.rpartition('.')[2] or file.stem}"
        self._server: Any = llama.Server(asked)

    def contender(self, prompts: Prompts, sampling: ts.SamplingConfig, new_tokens: int) -> Contender:
        """Its completion of a prompt's token ids."""
        labels = {"implementation": LLAMA, "mode": "plain", "schedule": None, "node_budget": None}
        return Contender(self.name, lambda i: self.run(prompts.of_round(i), sampling, new_tokens), labels)

    def run(self, prompt: list[int], sampling: ts.SamplingConfig, new_tokens: int) -> Run:
        """Generates exactly `new_tokens` tokens at a temperature, without filters."""
        asked = {"prompt": prompt, "n_predict": new_tokens, "seed": sampling.seed, "temperature": sampling.temperature}
        asked |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True, "cache_prompt": False}
        found = self._server.handle_completions(asked | {"return_tokens": True, "verbose": True})
        found = json.loads(found) if isinstance(found, str) else found
        times, ids = found["timings"], list(found["__verbose"]["tokens"])
        assert times["predicted_n"] == len(ids) == new_tokens, f"{times['predicted_n']} tokens, not {new_tokens}"
        seconds = times["predicted_ms"] / 1e3
        return Run(
            token_ids=ids,
            decode_seconds=seconds,
            wall_seconds=seconds,
            iterations=new_tokens - 1,
            prefill_seconds=times["prompt_ms"] / 1e3,
            compile_seconds=0.0,
        )
