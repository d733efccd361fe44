"""llama.cpp's server on GGUF files, by the package `xllamacpp`, timed by its own clock."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import tokenswift_jax as ts
from benchmarking.rows import LLAMA
from benchmarking.runs import Contender, Run
from benchmarking.texts import Prompts

_WORKER = Path(__file__).with_name("llama_worker.py")


class LlamaModel:
    """One GGUF file in llama.cpp, on CPU with all cores; its cache is in float16, its own default."""

    def __init__(self, file: Path, positions: int) -> None:
        """positions: the longest text. Raises UserError without the package or the file."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ts.UserError("llama.cpp is measured by the package xllamacpp: pip install xllamacpp")
        if not file.is_file():
            raise ts.UserError(f"{file} is not a file")
        self.name = f"{LLAMA}, {file.stem.rpartition('.')[2] or file.stem}"
        command = [sys.executable, str(_WORKER), str(file), str(positions), str(ts.describe_environment()["cores"])]
        self._worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def contender(self, prompts: Prompts, sampling: ts.SamplingConfig, new_tokens: int) -> Contender:
        """Its completion of a prompt's token ids."""
        labels = {"implementation": LLAMA, "mode": "plain", "schedule": None, "node_budget": None}
        return Contender(self.name, lambda i: self.run(prompts.of_round(i), sampling, new_tokens), labels)

    def run(self, prompt: list[int], sampling: ts.SamplingConfig, new_tokens: int) -> Run:
        """Generates exactly `new_tokens` tokens at a temperature, without filters."""
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        asked = {"prompt": prompt, "n_predict": new_tokens, "ignore_eos": True, "cache_prompt": False}
        asked |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": sampling.seed}
        self._worker.stdin.write(json.dumps(asked | {"return_tokens": True, "verbose": True}) + "\n")
        self._worker.stdin.flush()
        found = json.loads(self._worker.stdout.readline())
        times, ids = found["timings"], found["tokens"]
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
