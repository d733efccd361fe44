"""Byte-level BPE (tokenizer.ggml.model "gpt2") as parts of tokenizer.json."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.splits import SPLITS, UNNAMED, Split
from tokenswift_jax.checkpoint.gguf.vocabulary import Vocabulary


def byte_level(fields: Fields, vocabulary: Vocabulary, architecture: str) -> tuple[dict[str, Any], bool]:
    """The parts of tokenizer.json, and whether a text begins with BOS unless the file says otherwise.

    Raises:
      UserError: no merges, a merge that is not two entries, or an unknown `tokenizer.ggml.pre`.
    """
    split = _split(fields, architecture)
    fields.neutral("add_space_prefix", 0)
    fields.ignore("scores")
    merges = fields.values("merges", str)
    if merges is None:
        raise fields.error("lacks tokenizer.ggml.merges, which a byte-level tokenizer needs")
    known = set(vocabulary.entries.values())
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise fields.error(
                f"is damaged: the merge {merge!r} is not two entries of the vocabulary that form a third"
            )
        pairs.append([left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    parts = {
        "normalizer": {"type": "NFC"} if split.normalises else None,
        "pre_tokenizer": split.pre_tokenizer(),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.whole_words,
            "vocab": {token: index for index, token in vocabulary.entries.items()},
            "merges": pairs,
        },
    }
    return parts, split.begins


def _split(fields: Fields, architecture: str) -> Split:
    name = fields.text("pre")
    if name in (None, "default"):
        name = UNNAMED[architecture]
    if name not in SPLITS:
        raise fields.error(f"has tokenizer.ggml.pre {name!r}; known: default, {', '.join(SPLITS)}")
    return SPLITS[name]
