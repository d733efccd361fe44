"""SentencePiece's BPE (tokenizer.ggml.model "llama") as parts of tokenizer.json."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.vocabulary import Vocabulary

_SPACE = "\u2581"


def sentencepiece(fields: Fields, vocabulary: Vocabulary, architecture: str) -> tuple[dict[str, Any], bool]:
    """The parts of tokenizer.json, and that a text begins with BOS unless the file says otherwise.

    Raises:
      UserError: no scores, or not one for each entry.
    """
    del architecture  # the same for all
    if fields.text("pre") not in (None, "default"):
        raise fields.error("has a SentencePiece tokenizer with a tokenizer.ggml.pre; only byte-level ones have it")
    prefix = fields.flag("add_space_prefix") is not False
    scores = fields.values("scores", float)
    fields.ignore("merges")  # the scores alone say which merge comes first
    if scores is None or len(scores) <= max(vocabulary.entries):
        raise fields.error("is damaged: tokenizer.ggml.scores does not fit the vocabulary")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = vocabulary.roles.get("unknown")
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else vocabulary.entries[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: index for index, token in vocabulary.entries.items()},
            "merges": score_merges(vocabulary, scores),
        },
    }
    return parts, True


def score_merges(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """The merges, first the one that SentencePiece takes first: the pair whose joint entry has the highest score."""
    plain = {vocabulary.entries[index] for index in vocabulary.mergeable}
    found = []
    for index in vocabulary.mergeable:
        entry = vocabulary.entries[index]
        for cut in range(1, len(entry)):
            left, right = entry[:cut], entry[cut:]
            if left in plain and right in plain:
                found.append((-scores[index], index, cut, [left, right]))
    return [pair for *_, pair in sorted(found)]
