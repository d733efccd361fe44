"""The model card: README.md beside the weights, from training.json and the measures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.extent import Extent, extent
from demo.measures import DRAFT_CACHE, SCHEDULES
from tokenswift_jax.checkpoint.directory import read_json

CARD = """# The bundled demo model

A Llama ({parameters:,} parameters, {layers} layers, {heads} query and {kv_heads} key/value heads of {head_dim}, tied
embeddings, byte-level BPE of {vocab_size:,} entries) with {draft_heads} {head_type} draft heads, stored in bfloat16. It
writes English in the manner of nineteenth-century prose and knows nothing; it is here so that every command of
tokenswift_jax runs offline in seconds. `scripts/train_demo.py` and `configs/demo.json` made it, with the training
command that anyone's model gets; `training.json` holds the settings as they ran.

## Training

* Data: 32 public-domain books (Project Gutenberg, first published before 1919), 41.8 MB. Paragraphs are unwrapped;
  every {wrapped_every}th book keeps the file's hard-wrapped lines.
* {tokens:,} tokens, {backbone_tokens:,} of them with the backbone learning, in {steps:,} steps{minutes} ({machine};
  {versions}).
* {started}
* **Training length: {shortest:,} tokens for most of the run, at the end up to {longest:,}.** In the later phases the
  positions of some rows jump once, so that distances up to {positions:,} positions occur. Beyond {longest:,} tokens of
  context the model was never trained: expect it to hold together, not to use what it read there.
* Phases:

| phase | tokens | steps | rows x length | rows whose positions jump | learns |
| --- | --- | --- | --- | --- | --- |
{phases}

* {head_sentence}
  They learn the backbone's own distribution, not the book's word; while the backbone learns too, their losses count
  {head_loss_weight:.0%} beside its own.{note}

## Measured on the held-out books (three authors absent from training)

Bits per character of {read}, windows of {length:,} tokens advancing by {stride}, weights as stored
(bfloat16), computed in float32:

| book | unwrapped | hard-wrapped |
| --- | --- | --- |
{bits}

({per_token:.2f} characters a token unwrapped, {per_token_wrapped:.2f} hard-wrapped.)

How often the backbone's own best token is among a head's best guesses, {head_tokens:,} tokens a
book{seen}:

| head | guesses | best 1 | best 2 | best 3 | book's word in best 1 |
| --- | --- | --- | --- | --- | --- |
{hits}

Tokens per iteration of `tokenswift` mode (heads and n-grams), {new_tokens} tokens after {prompt_tokens:,} of each book,
draft cache {draft_cache}, seed 0:

| sampling | {schedules} |
| --- | --- | --- |
{drafted}

Nats a token in each eighth of one window read from the start of {first_book}:

| window | {eighths} |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{by_position}

{comparison}## A sample

Temperature 1, min-p 0.1, penalty 1.1, seed 0. Prompt:

> {prompt}

{sample}
"""

STARTED = """Started from the weights that this model had before ({backbone:,} tokens with the backbone
  learning, {heads:,} with the heads alone, rows of {shortest:,} to {longest:,} tokens), the heads anew."""
FRESH = "Started from weights and heads that knew nothing."
HEADS = {
    "sequential": "The heads are sequential: each sees the drafted token just above its guess.",
    "chained": "The heads are chained: each reads the one before it and sees no drafted token.",
}
SEEN = ", which a head reads as they stand (the token above its guess is the book's)"

# The weights before, measured as this card measures: bits on the first 40,000 tokens a book, iterations after prompts
# of 2,048 tokens with a draft cache of 512. They are no longer here to be measured again.
EARLIER_BITS, EARLIER_HIT = 1.90, 0.227
EARLIER_TOKENS = {
    "temperature 0": {"partial": 3.91, "fused": 3.10},
    "temperature 1, min-p 0.1, penalty 1.1": {"partial": 2.49, "fused": 1.59},
}
EARLIER_CONDITIONS = {"tokens_a_book": 40000, "prompt_tokens": 2048}
COMPARISON = """## Against the weights before

| measure | before | now |
| --- | --- | --- |
{rows}

"""


def write_card(folder: Path, report: Mapping[str, Any], note: str) -> None:
    """Writes FOLDER/README.md in one move; `note` says what the recipe does not tell about this run."""
    card = card_text(read_json(folder / "training.json"), read_json(folder / "config.json"), report, note)
    draft = folder / "README.md.part"
    draft.write_text(card, encoding="utf-8")
    os.replace(draft, folder / "README.md")


def card_text(training: Mapping[str, Any], config: Mapping[str, Any], report: Mapping[str, Any], note: str) -> str:
    """The card of a checkpoint with this training.json and config.json, measured as `report` says."""
    bits, hits, drafted = (report[name] for name in ("bits_per_character", "head_hits", "tokens_per_iteration"))
    phases, started, draft = training["phases"], training["started_from"], config["tokenswift"]
    lengths = [phase["settings"]["max_length"] for phase in phases if phase["settings"]["what"] == "all"]
    before = Extent(**started["in_all"]) if started else Extent()
    here, minutes = extent(training), [phase["minutes"] for phase in phases]
    backbone = here.backbone_tokens - before.backbone_tokens
    return CARD.format(
        parameters=training["parameters"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=config["vocab_size"],
        draft_heads=draft["num_heads"],
        head_type=draft["head_type"],
        head_sentence=HEADS[draft["head_type"]],
        head_loss_weight=phases[0]["settings"]["head_loss_weight"],
        seen=SEEN if draft["head_type"] == "sequential" else "",
        wrapped_every=training["text"]["wrapped_every"],
        tokens=backbone + here.head_tokens - before.head_tokens,
        backbone_tokens=backbone,
        steps=sum(phase["steps"] for phase in phases),
        minutes="" if None in minutes else f" and {sum(minutes):.0f} minutes",
        machine=training["machine"],
        versions=", ".join(f"{name} {version}" for name, version in training["versions"].items()),
        started=_started(before) if started else FRESH,
        shortest=min(lengths),
        longest=max(lengths),
        positions=config["max_position_embeddings"],
        phases="\n".join(_phase_row(phase) for phase in phases),
        note=f"\n* {note}" if note else "",
        read=f"each book's first {report['tokens_a_book']:,} tokens" if report["tokens_a_book"] else "the whole books",
        head_tokens=report["head_tokens_a_book"],
        length=report["length"],
        stride=report["stride"],
        bits="\n".join(_row(name, bits["unwrapped"][name], bits["wrapped"][name]) for name in bits["unwrapped"]),
        per_token=report["characters_per_token_unwrapped"],
        per_token_wrapped=report["characters_per_token_wrapped"],
        hits="\n".join(
            _row(i + 1, f"t+{i + 2}", *(f"{share:.1%}" for share in model), f"{book[0]:.1%}")
            for i, (model, book) in enumerate(zip(hits["model"], hits["text"], strict=True))
        ),
        new_tokens=report["new_tokens"],
        prompt_tokens=report["prompt_tokens"],
        draft_cache=DRAFT_CACHE,
        schedules=" | ".join(f"`{schedule}`" for schedule in SCHEDULES),
        drafted="\n".join(
            _row(name, *(f"{found[schedule]:.2f}" for schedule in SCHEDULES)) for name, found in drafted.items()
        ),
        first_book=next(iter(bits["unwrapped"])),
        eighths=" | ".join(f"{i}/8" for i in range(1, 9)),
        by_position="\n".join(_row(size, *bands) for size, bands in report["nats_by_position"].items()),
        comparison=_comparison(report) if started else "",
        prompt=report["sample"]["prompt"].replace("\n", "\n> "),
        sample=report["sample"]["text"],
    )


def _started(before: Extent) -> str:
    return STARTED.format(
        backbone=before.backbone_tokens, heads=before.head_tokens, shortest=before.shortest, longest=before.longest
    )


def _comparison(report: Mapping[str, Any]) -> str:
    """The table of before and now; nothing where the figures were not measured alike."""
    if any(report[name] != value for name, value in EARLIER_CONDITIONS.items()):
        return ""
    bits = report["bits_per_character"]["unwrapped"]["all"]
    hit = report["head_hits"]["model"][0][0]
    rows = [
        _row("bits per character, unwrapped", f"{EARLIER_BITS:.2f}", f"{bits:.2f}"),
        _row("head 1, best 1, on the book's own text", f"{EARLIER_HIT:.1%}", f"{hit:.1%}"),
    ]
    for name, found in EARLIER_TOKENS.items():
        for schedule, tokens in found.items():
            now = report["tokens_per_iteration"][name][schedule]
            rows.append(_row(f"tokens per iteration, `{schedule}`, {name}", f"{tokens:.2f}", f"{now:.2f}"))
    return COMPARISON.format(rows="\n".join(rows))


def _phase_row(phase: Mapping[str, Any]) -> str:
    settings = phase["settings"]
    return _row(
        phase["name"],
        f"{phase['tokens']:,}",
        f"{phase['steps']:,}",
        f"{settings['batch_size'] * settings['gradient_accumulation_steps']} x {settings['max_length']}",
        f"{settings['skip_share']:.0%}",
        "backbone and heads" if settings["what"] == "all" else "heads",
    )


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
