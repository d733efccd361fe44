"""The model card: README.md beside the weights, from training.json and the measures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CARD = """# The bundled demo model

A Llama ({parameters:,} parameters, {layers} layers, {heads} query and {kv_heads} key/value heads of {head_dim}, tied
embeddings, byte-level BPE of {vocab_size} entries) with {draft_heads} chained draft heads, stored in bfloat16. It
writes English in the manner of nineteenth-century prose and knows nothing; it is here so that every command of
tokenswift_jax runs offline in seconds. `scripts/train_demo.py` and `configs/demo.json` made it; `training.json` holds
the recipe as it ran.

## Training

* Data: 32 public-domain books (Project Gutenberg, first published before 1919), 41.8 MB. Paragraphs are unwrapped;
  {wrapped_share:.0%} of the windows keep the files' hard-wrapped lines.
* {tokens:,} tokens, {backbone_tokens:,} of them with the backbone learning, in {steps:,} steps and {minutes} minutes on
  two shared CPU cores ({machine}; {versions}).{restart}
* **Training length: {shortest} tokens for most of the run, at the end up to {longest}.** In the later phases some
  windows leave out their middle, so that distances up to {positions:,} positions occur. Beyond {longest} tokens of
  context the model was never trained: expect it to hold together, not to use what it read there.
* Phases:

| phase | tokens | windows x length | windows with a gap | learns |
| --- | --- | --- | --- | --- |
{phases}

* The heads learn the backbone's own distribution, not the book's word; while the backbone learns too, their losses
  count a tenth in its gradient ("head_weight"), at the end it is frozen.{note}

## Measured on the held-out books (three authors absent from training)

Bits per character of {read}, windows of {length} tokens advancing by {stride}, weights as stored
(bfloat16), computed in float32:

| book | unwrapped | hard-wrapped |
| --- | --- | --- |
{bits}

({per_token:.2f} characters a token unwrapped, {per_token_wrapped:.2f} hard-wrapped.)

How often the backbone's own best token is among a head's best guesses, {head_tokens:,} tokens a book:

| head | guesses | best 1 | best 2 | best 3 | book's word in best 1 |
| --- | --- | --- | --- | --- | --- |
{hits}

Nats a token in each eighth of one window read from the start of {first_book}:

| window | {eighths} |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{by_position}

## A sample

Temperature 1, min-p 0.1, penalty 1.1, seed 0. Prompt:

> {prompt}

{sample}
"""

RESTART = """
  They started from the weights, with fresh optimizer moments, of an earlier run that was cut short after
  {tokens:,} tokens, {steps} steps and {minutes} minutes (not counted here)."""


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write_card(folder: Path, report: dict[str, Any], note: str) -> None:
    """Writes FOLDER/README.md in one move; `note` says what the recipe does not tell about this run."""
    training = json.loads((folder / "training.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    bits, hits = report["bits_per_character"], report["head_hits"]
    phases = [
        _row(
            p["name"],
            f"{training['tokens_seen'].get(p['name'], 0):,}",
            f"{p['batch']} x {p['length']}",
            f"{p['gap_share']:.0%}",
            "heads" if p["freeze_backbone"] else "backbone and heads",
        )
        for p in training["phases"]
    ]
    before, restart = training.get("started_from") or {}, ""
    if before:
        seen, minutes = sum(before["tokens_seen"].values()), before["training_minutes"]
        restart = RESTART.format(tokens=seen, steps=before["steps"], minutes=minutes)
    lengths = [p["length"] for p in training["phases"] if not p["freeze_backbone"]]
    text = CARD.format(
        parameters=training["parameters"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=config["vocab_size"],
        draft_heads=config["tokenswift"]["num_heads"],
        wrapped_share=training["text"]["wrapped_share"],
        tokens=sum(training["tokens_seen"].values()),
        backbone_tokens=sum(
            training["tokens_seen"].get(p["name"], 0) for p in training["phases"] if not p["freeze_backbone"]
        ),
        restart=restart,
        note=f"\n* {note}" if note else "",
        steps=training["steps"],
        minutes=training["training_minutes"],
        machine=training["machine"],
        versions=", ".join(f"{name} {version}" for name, version in training["versions"].items()),
        shortest=min(lengths),
        longest=max(lengths),
        positions=config["max_position_embeddings"],
        phases="\n".join(phases),
        read=f"each book's first {report['tokens_a_book']:,} tokens" if report["tokens_a_book"] else "the whole books",
        head_tokens=report["head_tokens_a_book"],
        length=report["length"],
        stride=report["stride"],
        bits="\n".join(_row(name, bits["unwrapped"][name], bits["wrapped"][name]) for name in bits["unwrapped"]),
        per_token=report["characters_per_token_unwrapped"],
        per_token_wrapped=report["characters_per_token_wrapped"],
        hits="\n".join(
            _row(i + 1, f"t+{i + 2}", *(f"{x:.1%}" for x in model), f"{book[0]:.1%}")
            for i, (model, book) in enumerate(zip(hits["model"], hits["text"], strict=True))
        ),
        first_book=next(iter(bits["unwrapped"])),
        eighths=" | ".join(f"{i}/8" for i in range(1, 9)),
        by_position="\n".join(_row(size, *bands) for size, bands in report["nats_by_position"].items()),
        prompt=report["sample"]["prompt"].replace("\n", "\n> "),
        sample=report["sample"]["text"],
    )
    draft = folder / "README.md.part"
    draft.write_text(text)
    os.replace(draft, folder / "README.md")
