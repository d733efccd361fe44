"""Texts for training draft heads: the model itself answers chat requests and continues passages of books.

    python scripts/smollm2/write_texts.py --model smollm2 --books BOOKS/*.txt --count 8192 --output texts.jsonl

Each line is a document that `tokenswift_jax.train --data` reads: {"messages": ...} or {"text": ...}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokenswift_jax as ts
from smollm2.prompts import Prompt, prompts

_TURN = "<|im_start|>user\n"
_END, _ANSWER = "<|im_end|>", "<|im_start|>assistant\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the texts; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype")
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=8192, help="texts")
    parser.add_argument("--batch", type=int, default=32, help="texts at once")
    parser.add_argument("--tokens", type=int, default=448, help="at most, of a text")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch that would end later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    begun = time.monotonic()
    model = ts.load(options.model, options.dtype)
    chosen = prompts(sorted(options.books), options.count, options.seed)
    longest, written, tokens = 0.0, 0, 0
    with options.output.open("w", encoding="utf-8") as file:
        for first in range(0, len(chosen), options.batch):
            if time.monotonic() - begun + longest > options.seconds:
                break
            start = time.monotonic()
            batch = chosen[first : first + options.batch]
            results = ts.generate(
                model,
                [_ids(model, prompt) for prompt in batch],
                [
                    ts.SamplingConfig(temperature=prompt.temperature, seed=options.seed, sequence=first + row)
                    for row, prompt in enumerate(batch)
                ],
                ts.SpeculationConfig(mode="autoregressive"),
                max_new_tokens=options.tokens,
                ignore_eos=[prompt.kind == "user" for prompt in batch],
            )
            for prompt, result in zip(batch, results, strict=True):
                document = _document(model, prompt, result.token_ids)
                if document is not None:
                    file.write(json.dumps(document, ensure_ascii=False) + "\n")
                    written += 1
            tokens += sum(len(result.token_ids) for result in results)
            # The first batch compiles; later ones are shorter.
            longest = time.monotonic() - start
            total = time.monotonic() - begun
            print(
                f"{first + len(batch)}/{len(chosen)} texts, {tokens:,} tokens, {total:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(f"{written} documents, {tokens:,} tokens in {options.output}")
    return 0


def _ids(model: ts.Model, prompt: Prompt) -> list[int]:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if prompt.kind == "book":
        return tokenizer.encode(prompt.text)
    if prompt.kind == "chat":
        turns = [{"role": "user", "content": prompt.text}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        text = text[: text.index(_TURN) + len(_TURN)]
    return tokenizer.encode(text, add_special_tokens=False)


def _document(model: ts.Model, prompt: Prompt, ids: list[int]) -> dict | None:
    """A line of the output; None if the model wrote no chat."""
    assert model.tokenizer is not None
    text = model.tokenizer.decode(ids)
    if prompt.kind == "book":
        return {"text": f"{prompt.text}{text.removesuffix(_END)}"}
    if prompt.kind == "chat":
        turns = [("user", prompt.text), ("assistant", text.split(_END)[0])]
    else:
        user, found, rest = text.partition(f"{_END}\n{_ANSWER}")
        if not found:
            return None
        turns = [("user", user), ("assistant", rest.split(_END)[0])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


if __name__ == "__main__":
    sys.exit(main())
