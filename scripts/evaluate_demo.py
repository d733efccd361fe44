"""Measures a demo checkpoint on held-out books, prints JSON and, with --card, fills in the model card beside it.

python scripts/evaluate_demo.py --data ../shared/corpus/heldout --card
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import measures
from demo.text import keep_wrapped, read_books, unwrap
from page import fill, table

import tokenswift_jax as ts
from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError

DEMO = Path(__file__).resolve().parent.parent / "tokenswift_jax" / "demo_model"
LENGTH, STRIDE = 1024, 768  # tokens of a window, and between windows
HEAD_TOKENS, HEAD_WINDOW = 16384, 512  # of a book for the heads' accuracy
PROMPT_TOKENS, NEW_TOKENS = 2048, 256  # before drafting, and drafted
_SKIPPED = 2048  # tokens of a book's front matter, skipped for measures of prose


def measure(folder: Path, data: Path, tokens_a_book: int | None) -> dict[str, Any]:
    """Every figure of the model card, from the books of `data`."""
    model, books = ts.load(folder), read_books(data)
    tokenizer: Any = model.tokenizer
    column = read_json(folder / "training.json")["text"]["wrap_column"]
    forms = {
        "unwrapped": {name: unwrap(text, column) for name, text in books.items()},
        "wrapped": {name: keep_wrapped(text) for name, text in books.items()},
    }
    report: dict[str, Any] = {"tokens_a_book": tokens_a_book, "bits_per_character": {}}
    for form, texts in forms.items():
        figures, bits, size, tokens = {}, 0.0, 0, 0
        for name, text in texts.items():
            encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
            ids = encoding.input_ids[:tokens_a_book]
            characters = encoding.offset_mapping[len(ids) - 1][1]
            value = measures.bits_per_character(model, ids, characters, LENGTH, STRIDE)
            figures[name] = round(value, 4)
            bits, size, tokens = bits + value * characters, size + characters, tokens + len(ids)
        report["bits_per_character"][form] = figures | {"all": round(bits / size, 4)}
        report[f"characters_per_token_{form}"] = round(size / tokens, 4)
    plain = [tokenizer(text, verbose=False).input_ids for text in forms["unwrapped"].values()]
    prose = [ids[_SKIPPED : _SKIPPED + HEAD_TOKENS] for ids in plain]
    report["head_hits"] = measures.head_hits(model, prose, HEAD_WINDOW)
    prompts = [ids[:PROMPT_TOKENS] for ids in prose]
    report["tokens_per_iteration"] = measures.tokens_per_iteration(model, prompts, NEW_TOKENS)
    return report


def card_text(card: str, report: Mapping[str, Any]) -> str:
    """The card with its marked parts filled from a report."""
    bits, hits, drafted = (report[name] for name in ("bits_per_character", "head_hits", "tokens_per_iteration"))
    read = f"Each book's first {report['tokens_a_book']:,} tokens" if report["tokens_a_book"] else "The whole books"
    books = [(name, bits["unwrapped"][name], bits["wrapped"][name]) for name in bits["unwrapped"]]
    shares = [
        (i + 1, f"t+{i + 2}", *(f"{share:.1%}" for share in model), f"{book[0]:.1%}")
        for i, (model, book) in enumerate(zip(hits["model"], hits["text"], strict=True))
    ]
    schedules = measures.SCHEDULES
    sampled = [(name, *(f"{found[schedule]:.2f}" for schedule in schedules)) for name, found in drafted.items()]
    parts = {
        "bits": f"{read}, windows of {LENGTH:,} tokens advancing by {STRIDE}:\n\n"
        + table(("book", "unwrapped", "hard-wrapped"), books)
        + f"\n\n({report['characters_per_token_unwrapped']:.2f} characters a token unwrapped, "
        f"{report['characters_per_token_wrapped']:.2f} hard-wrapped.)",
        "hits": f"{HEAD_TOKENS:,} tokens a book:\n\n"
        + table(("head", "guesses", "best 1", "best 2", "best 3", "book's word in best 1"), shares),
        "drafted": f"{NEW_TOKENS} tokens after {PROMPT_TOKENS:,} of each book, draft cache {measures.DRAFT_CACHE}, "
        "seed 0:\n\n" + table(("sampling", *(f"`{name}`" for name in schedules)), sampled),
    }
    for name, text in parts.items():
        card = fill(card, name, text)
    return card


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, fills in the card; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of held-out *.txt books, UTF-8")
    parser.add_argument("--model", type=Path, default=DEMO, help="checkpoint directory (default: the bundled demo)")
    parser.add_argument("--tokens", type=int, default=40000, help="of each book for bits (default: %(default)s)")
    parser.add_argument("--card", action="store_true", help="fill in the README.md of --model")
    arguments = parser.parse_args(argv)
    try:
        report = measure(arguments.model, arguments.data, arguments.tokens)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2, ensure_ascii=False))
    if arguments.card:
        path = arguments.model / "README.md"
        card = path if path.exists() else DEMO / "README.md"
        path.write_text(card_text(card.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
