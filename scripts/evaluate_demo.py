"""Measures a demo checkpoint on held-out books, prints JSON and, with --card, writes the model card beside it.

python scripts/evaluate_demo.py --data ../shared/corpus/heldout --card
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from demo.card import write_card
from demo.measures import bits_per_character, head_hits, loss_by_position, write_on
from demo.reload import load_decoder
from demo.text import keep_wrapped, read_books, unwrap
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of held-out *.txt books, UTF-8")
    parser.add_argument("--model", type=Path, default=ROOT / "tokenswift_jax" / "demo_model")
    parser.add_argument("--length", type=int, default=1024, help="tokens a window")
    parser.add_argument("--stride", type=int, default=768, help="tokens between windows")
    parser.add_argument("--tokens", type=int, help="read only each book's first tokens")
    parser.add_argument("--head-tokens", type=int, default=16384, help="tokens a book for the heads' accuracy")
    parser.add_argument("--long", type=int, default=16384, help="tokens of the window read in one go")
    parser.add_argument("--sample-tokens", type=int, default=192)
    parser.add_argument("--card", action="store_true", help="write README.md into --model")
    parser.add_argument("--note", default="", help="a sentence for the card that the recipe does not tell")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure the model card states."""
    model = load_decoder(arguments.model)
    training = json.loads((arguments.model / "training.json").read_text())
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    books = read_books(arguments.data)
    dresses = {
        "unwrapped": {name: unwrap(text, training["text"]["wrap_column"]) for name, text in books.items()},
        "wrapped": {name: keep_wrapped(text) for name, text in books.items()},
    }
    report: dict[str, Any] = {"length": arguments.length, "stride": arguments.stride, "tokens_a_book": arguments.tokens}
    report |= {"head_tokens_a_book": arguments.head_tokens, "bits_per_character": {}}
    for dress, texts in dresses.items():
        figures, bits, size, tokens = {}, 0.0, 0, 0
        for name, text in texts.items():
            encoding = tokenizer.encode(text)
            ids = np.array(encoding.ids[: arguments.tokens])
            characters = encoding.offsets[len(ids) - 1][1]
            value = bits_per_character(model, ids, characters, arguments.length, arguments.stride)
            figures[name] = round(value, 4)
            bits, size, tokens = bits + value * characters, size + characters, tokens + len(ids)
        report["bits_per_character"][dress] = figures | {"all": round(bits / size, 4)}
        report[f"characters_per_token_{dress}"] = round(size / tokens, 4)
    samples = [np.array(tokenizer.encode(text).ids) for text in dresses["unwrapped"].values()]
    ids = np.concatenate([sample[2048 : 2048 + arguments.head_tokens] for sample in samples])
    report["head_hits"] = head_hits(model, ids, 512, ranks=3)
    report["nats_by_position"] = {
        length: loss_by_position(model, samples[0], length, 8) for length in (4096, arguments.long)
    }
    prompt = samples[-1][4096:4160]
    written = write_on(model, prompt, arguments.sample_tokens, min_p=0.1, penalty=1.1, seed=0)
    report["sample"] = {"prompt": tokenizer.decode(prompt.tolist()), "text": tokenizer.decode(written)}
    return report


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes the card."""
    arguments = parse_arguments(argv)
    report = measure(arguments)
    print(json.dumps(report, indent=2, ensure_ascii=False))
    if arguments.card:
        write_card(arguments.model, report, arguments.note)


if __name__ == "__main__":
    main()
