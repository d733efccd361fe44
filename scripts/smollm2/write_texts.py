"""Texts for training draft heads: the model itself answers chat requests and continues passages of books.

    python scripts/smollm2/write_texts.py --model smollm2 --books BOOKS/*.txt --output TEXTS

TEXTS/texts.jsonl is data for `tokenswift_jax.train` ({"messages": ..} or {"text": ..} a line). TEXTS/*.npz have the
same texts as token ids with the backbone's states over them, which `train_heads.py` reads, also while they are written.
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
from smollm2.states import States
from smollm2.writer import Start, Written, write

_TURN = "<|im_start|>user\n"
_END, _ANSWER = "<|im_end|>", "<|im_start|>assistant\n"
_SHARD = 64  # texts of a file


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the texts; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=4096, help="texts")
    parser.add_argument("--rows", type=int, default=48, help="texts at once")
    parser.add_argument("--tokens", type=int, default=320, help="at most, of a text, with its prompt")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no shard later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    begun = time.monotonic()
    model = ts.load(options.model, "float32")
    chosen = prompts(sorted(options.books), options.count, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    shard: list[Written] = []
    shards = tokens = 0
    texts = write(
        model.graphdef,
        model.params,
        [start_of(model, prompt) for prompt in chosen],
        rows=options.rows,
        capacity=options.tokens,
        stops=model.eos_token_ids,
        seed=options.seed,
    )
    with (options.output / "texts.jsonl").open("w", encoding="utf-8") as file:
        for text in texts:
            document = _document(model, chosen[text.prompt], text.tokens.tolist())
            if document is not None:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
            shard.append(text)
            if len(shard) == _SHARD:
                States.of([(text.tokens, text.hidden) for text in shard]).save(options.output / f"{shards:05d}.npz")
                shards, tokens = shards + 1, tokens + sum(len(text.tokens) for text in shard)
                shard = []
                spent = time.monotonic() - begun
                print(f"{shards * _SHARD}/{len(chosen)} texts, {tokens:,} tokens, {spent:.0f} s", flush=True)
                if spent > options.seconds:
                    break
    return 0


def start_of(model: ts.Model, prompt: Prompt) -> Start:
    """The beginning of the text after a prompt, as the model reads it."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if prompt.kind == "book":
        return Start(tokenizer.encode(prompt.text), prompt.temperature, 1)
    if prompt.kind == "chat":
        turns = [{"role": "user", "content": prompt.text}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        stops = 1
    else:
        text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        text = text[: text.index(_TURN) + len(_TURN)]
        stops = 2
    return Start(tokenizer.encode(text, add_special_tokens=False), prompt.temperature, stops)


def _document(model: ts.Model, prompt: Prompt, ids: list[int]) -> dict | None:
    """A line of texts.jsonl; None if the model wrote no chat."""
    assert model.tokenizer is not None
    text = model.tokenizer.decode(ids)
    if prompt.kind == "book":
        return {"text": text.removesuffix(_END)}
    user, found, rest = text.partition(_TURN)[2].partition(f"{_END}\n{_ANSWER}")
    if not found:
        return None
    turns = [("user", user), ("assistant", rest.split(_END)[0])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


if __name__ == "__main__":
    sys.exit(main())
