"""Measures a demo checkpoint on held-out books, prints JSON and, with --card, fills in the model card beside it.

python scripts/evaluate_demo.py --data ../shared/corpus/heldout --tokens 40000 --card
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from demo.card import write_card
from demo.measures import bits_per_character, head_hits, loss_by_position, tokens_per_iteration, write_on
from demo.text import keep_wrapped, read_books, unwrap

import tokenswift_jax as ts
from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError

DEMO = Path(__file__).resolve().parent.parent / "tokenswift_jax" / "demo_model"
_HEAD_WINDOW = 512
_SKIPPED = 2048  # tokens of a book's front matter, skipped for measures of prose


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of held-out *.txt books, UTF-8")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--length", type=int, default=1024, help="tokens a window")
    parser.add_argument("--stride", type=int, default=768, help="tokens between windows")
    parser.add_argument("--tokens", type=int, help="read only each book's first tokens")
    parser.add_argument("--head-tokens", type=int, default=16384, help="tokens a book for the heads' accuracy")
    parser.add_argument("--long", type=int, default=16384, help="tokens of the longest window read in one go")
    parser.add_argument("--prompt-tokens", type=int, default=2048, help="of a book, before tokens are drafted")
    parser.add_argument("--new-tokens", type=int, default=256, help="drafted after each prompt")
    parser.add_argument("--sample-tokens", type=int, default=192)
    parser.add_argument("--card", action="store_true", help="fill in the README.md of --model")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure the model card states."""
    model = ts.load(arguments.model)
    tokenizer = model.tokenizer
    column = read_json(arguments.model / "training.json")["text"]["wrap_column"]
    books = read_books(arguments.data)
    forms = {
        "unwrapped": {name: unwrap(text, column) for name, text in books.items()},
        "wrapped": {name: keep_wrapped(text) for name, text in books.items()},
    }
    report: dict[str, Any] = {"length": arguments.length, "stride": arguments.stride, "tokens_a_book": arguments.tokens}
    report |= {"head_tokens_a_book": arguments.head_tokens, "bits_per_character": {}}
    for form, texts in forms.items():
        figures, bits, size, tokens = {}, 0.0, 0, 0
        for name, text in texts.items():
            encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
            ids = encoding.input_ids[: arguments.tokens]
            characters = encoding.offset_mapping[len(ids) - 1][1]
            value = bits_per_character(model, ids, characters, arguments.length, arguments.stride)
            figures[name] = round(value, 4)
            bits, size, tokens = bits + value * characters, size + characters, tokens + len(ids)
        report["bits_per_character"][form] = figures | {"all": round(bits / size, 4)}
        report[f"characters_per_token_{form}"] = round(size / tokens, 4)
    plain = [tokenizer(text, verbose=False).input_ids for text in forms["unwrapped"].values()]
    report["head_hits"] = head_hits(
        model, [ids[_SKIPPED : _SKIPPED + arguments.head_tokens] for ids in plain], _HEAD_WINDOW
    )
    report["nats_by_position"] = {
        length: loss_by_position(model, plain[0], length, 8) for length in sorted({arguments.long // 4, arguments.long})
    }
    report |= {"prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens}
    report["tokens_per_iteration"] = tokens_per_iteration(
        model, [ids[_SKIPPED : _SKIPPED + arguments.prompt_tokens] for ids in plain], arguments.new_tokens
    )
    prompt = plain[-1][2 * _SKIPPED : 2 * _SKIPPED + 64]
    written = write_on(model, prompt, arguments.sample_tokens)
    report["sample"] = {"prompt": tokenizer.decode(prompt), "text": written}
    return report


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, writes the card; the exit status."""
    arguments = parse_arguments(argv)
    try:
        report = measure(arguments)
        print(json.dumps(report, indent=2, ensure_ascii=False))
        if arguments.card:
            write_card(arguments.model, DEMO, report)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
