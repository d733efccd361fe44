"""transformers' generate with a static cache, compiled by torch, on random weights of a model's shapes."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from tokenswift_jax.models.config import ModelConfig

NEW_TOKENS = 64
_MODEL_TYPES = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen2": ("Qwen2Config", "Qwen2ForCausalLM")}


def rows(
    config: ModelConfig, lengths: tuple[int, ...], dtype: Any, report: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row a length with milliseconds a token; one row that says why where it cannot be measured here."""
    missing = _missing(config)
    if missing:
        yield {"missing": missing}
        return
    torch, library = importlib.import_module("torch"), importlib.import_module("transformers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config_class, model_class = (getattr(library, name) for name in _MODEL_TYPES[config.model_type])
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, str(dtype)))  # or the weights are made in float32 first
    with torch.device(device):
        settings = config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=str(dtype),
        )
        model = model_class(settings).eval()
    for length in lengths:
        report(f"transformers after {length:,} tokens")
        try:
            seconds = [_generate(torch, model, length, device) for _ in range(3)][1:]
        except torch.cuda.OutOfMemoryError as error:
            yield {"length": length, "missing": f"out of memory: {str(error).splitlines()[0]}"}
            continue
        yield {
            "length": length,
            "milliseconds": 1e3 * min(seconds) / (NEW_TOKENS - 1),
            "cache_implementation": "static",
            "device": device,
            "transformers": library.__version__,
            "torch": torch.__version__,
        }


def _generate(torch: Any, model: Any, length: int, device: str) -> float:
    """Seconds between the first and the last of the new tokens; the first calls compile."""
    times: list[float] = []

    class Clock:
        def put(self, value: Any) -> None:
            value.cpu()
            times.append(time.perf_counter())

        def end(self) -> None: ...

    ids = torch.randint(0, model.config.vocab_size, (1, length), device=device)
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            cache_implementation="static",
            streamer=Clock(),
            pad_token_id=0,
        )
    return times[-1] - times[1]


def _missing(config: ModelConfig) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    torch = importlib.import_module("torch")
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch sees no GPU"
    if config.model_type not in _MODEL_TYPES:
        return f"no transformers class for {config.model_type} here"
    return None
