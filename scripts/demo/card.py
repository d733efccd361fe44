"""The model card: README.md beside the weights, whose marked parts come from training.json and the measures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page import fill, table

from demo.measures import DRAFT_CACHE, SCHEDULES
from tokenswift_jax.checkpoint.directory import read_json


def write_card(folder: Path, template: Path, report: Mapping[str, Any]) -> None:
    """Fills FOLDER/README.md in one move; a folder without a card gets the one of `template`."""
    path = folder / "README.md"
    card = (path if path.exists() else template / "README.md").read_text(encoding="utf-8")
    draft = folder / "README.md.part"
    training, config = read_json(folder / "training.json"), read_json(folder / "config.json")
    draft.write_text(card_text(card, training, config, report), encoding="utf-8")
    os.replace(draft, path)


def card_text(card: str, training: Mapping[str, Any], config: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The card with its marked parts filled for a checkpoint with this training.json and config.json."""
    for name, text in {**_training(training, config), **_measured(report)}.items():
        card = fill(card, name, text)
    return card


def _training(training: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    heads, phases = config["tokenswift"], training["phases"]
    minutes, total = [phase["minutes"] for phase in phases], training["in_all"]
    tokens = sum(phase["tokens"] for phase in phases)
    backbone = sum(phase["tokens"] for phase in phases if phase["settings"]["what"] == "all")
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    before, started = training["started_from"], "Random weights and heads at the start."
    if before:
        seen = before["in_all"]
        started = (
            f"Started from earlier weights ({seen['backbone_tokens']:,} tokens with the backbone learning, "
            f"{seen['head_tokens']:,} with the heads alone, rows of {seen['shortest']:,} to {seen['longest']:,} "
            "tokens), with new heads."
        )
    steps, taken = (
        sum(phase["steps"] for phase in phases),
        "" if None in minutes else f" and {sum(minutes):.0f} minutes",
    )
    facts = [
        f"{tokens:,} tokens, {backbone:,} of them with the backbone learning, in {steps:,} steps{taken} "
        f"({training['machine']}; {versions}).",
        started,
        f"Rows of {total['shortest']:,} to {total['longest']:,} tokens in all; positions up to "
        f"{config['max_position_embeddings']:,} occur where the positions of a row jump.",
    ]
    rows = [_phase(phase["name"], phase, phase["settings"]) for phase in phases]
    headings = ("phase", "tokens", "steps", "rows x length", "rows whose positions jump", "learns")
    return {
        "model": (
            f"A Llama ({training['parameters']:,} parameters, {config['num_hidden_layers']} layers, "
            f"{config['num_attention_heads']} query and {config['num_key_value_heads']} key/value heads of "
            f"{config['head_dim']}, tied embeddings, byte-level BPE of {config['vocab_size']:,} entries) with "
            f"{heads['num_heads']} {heads['head_type']} draft heads, stored in bfloat16."
        ),
        "training": "\n".join(f"* {fact}" for fact in facts) + "\n\n" + table(headings, rows),
    }


def _phase(name: str, phase: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    rows = settings["batch_size"] * settings["gradient_accumulation_steps"]
    learns = "backbone and heads" if settings["what"] == "all" else "heads"
    size, jumping = f"{rows} x {settings['max_length']}", f"{settings['skip_share']:.0%}"
    return [name, f"{phase['tokens']:,}", f"{phase['steps']:,}", size, jumping, learns]


def _measured(report: Mapping[str, Any]) -> dict[str, str]:
    bits, hits, drafted = (report[name] for name in ("bits_per_character", "head_hits", "tokens_per_iteration"))
    read = f"each book's first {report['tokens_a_book']:,} tokens" if report["tokens_a_book"] else "the whole books"
    books = [(name, bits["unwrapped"][name], bits["wrapped"][name]) for name in bits["unwrapped"]]
    shares = [
        (i + 1, f"t+{i + 2}", *(f"{share:.1%}" for share in model), f"{book[0]:.1%}")
        for i, (model, book) in enumerate(zip(hits["model"], hits["text"], strict=True))
    ]
    sampled = [(name, *(f"{found[schedule]:.2f}" for schedule in SCHEDULES)) for name, found in drafted.items()]
    sample, eighths = report["sample"], [f"{i}/8" for i in range(1, 9)]
    return {
        "bits": f"{read}, windows of {report['length']:,} tokens advancing by {report['stride']}:\n\n".capitalize()
        + table(("book", "unwrapped", "hard-wrapped"), books)
        + f"\n\n({report['characters_per_token_unwrapped']:.2f} characters a token unwrapped, "
        f"{report['characters_per_token_wrapped']:.2f} hard-wrapped.)",
        "hits": f"{report['head_tokens_a_book']:,} tokens a book:\n\n"
        + table(("head", "guesses", "best 1", "best 2", "best 3", "book's word in best 1"), shares),
        "drafted": f"{report['new_tokens']} tokens after {report['prompt_tokens']:,} of each book, draft cache "
        f"{DRAFT_CACHE}, seed 0:\n\n" + table(("sampling", *(f"`{name}`" for name in SCHEDULES)), sampled),
        "positions": table(("window", *eighths), [(n, *bands) for n, bands in report["nats_by_position"].items()]),
        "sample": "> " + sample["prompt"].replace("\n", "\n> ") + f"\n\n{sample['text']}",
    }
