"""transformers' own generate on the attached GPU, with random weights of a model's shapes: what users come from."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

TOKENS = 129  # of a timed text; the first comes with the prompt


def transformers_steps(
    fields: dict[str, Any], lengths: tuple[int, ...], report: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row for each length of a prompt: milliseconds of the prompt and of a token, greedy, batch 1, in bfloat16.

    Args:
      fields: of the model's config.json.
      lengths: tokens of the prompts.
      report: called with a line of progress.
    """
    try:
        torch: Any = importlib.import_module("torch")  # no dependency of the project
    except ImportError as error:
        yield {"missing": f"PyTorch does not import ({error})"}
        return
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, __version__

    on_gpu = torch.cuda.is_available()
    with torch.device("cuda" if on_gpu else "cpu"):
        config = AutoConfig.for_model(**fields)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    about = {"library": "transformers", "version": __version__, "torch": torch.__version__}
    about |= {"torch_device": model.device.type, "attention": model.config._attn_implementation}
    rng = np.random.default_rng(0)

    def seconds(length: int, tokens: int) -> float:
        ids = torch.tensor(rng.integers(0, config.vocab_size, (1, length)), device=model.device)
        begun = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=True)
        assert out.shape[1] == length + tokens, "transformers ended the text early"
        return time.perf_counter() - begun

    for length in lengths:
        report(f"transformers after {length:,} tokens")
        seconds(length, 2)  # the first call loads libraries and kernels
        prompt, whole = seconds(length, 1), seconds(length, TOKENS)
        yield about | {
            "length": length,
            "prompt_seconds": prompt,
            "milliseconds": 1e3 * (whole - prompt) / (TOKENS - 1),
        }
