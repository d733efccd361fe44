"""tokenizer.json, tokenizer_config.json and the chat template from a GGUF file's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenswift_jax.checkpoint.gguf.byte_level import byte_level
from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.sentencepiece import sentencepiece
from tokenswift_jax.checkpoint.gguf.vocabulary import Vocabulary, read_vocabulary

_KINDS = {"gpt2": byte_level, "llama": sentencepiece}
_ROLE_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# Ids that other programs use: for filling gaps in code, and for encoders.
_UNUSED_IDS = (
    *(f"fim_{part}_token_id" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *(f"{part}_token_id" for part in ("prefix", "suffix", "middle", "seperator", "cls", "mask")),
)


def write_tokenizer(
    container: Container, architecture: str, folder: Path, size: int, positions: int
) -> Vocabulary | None:
    """Writes the tokenizer and the chat template; None, and nothing written, if the file has no vocabulary.

    Args:
      container: the file.
      architecture: llama.cpp's name of the architecture.
      folder: the destination.
      size: rows of the model's embedding.
      positions: the longest text, in tokens.

    Raises:
      UserError: a kind of tokenizer that is not known, or parts of it that do not fit each other.
    """
    fields = Fields(container.path, container.metadata, "tokenizer.ggml.")
    kind = fields.text("model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind not in _KINDS:
        raise fields.error(f"has a tokenizer of the kind {kind!r}; known: gpt2 (byte-level BPE), llama (SentencePiece)")
    vocabulary = read_vocabulary(fields, size)
    parts, begins = _KINDS[kind](fields, vocabulary, architecture)
    ends = bool(fields.flag("add_eos_token"))
    stated = fields.flag("add_bos_token")
    borders = _borders(fields, vocabulary, begins and "bos" in vocabulary.roles if stated is None else stated, ends)
    fields.neutral("add_sep_token", 0)
    fields.neutral("remove_extra_whitespaces", 0)
    fields.ignore(*_UNUSED_IDS)
    fields.finish()
    shared = {"version": "1.0", "truncation": None, "padding": None}
    contents = shared | parts | {"added_tokens": _added(vocabulary), "post_processor": borders}
    text = json.dumps(contents, ensure_ascii=False)
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise fields.error(f"has a tokenizer that does not fit itself: {' '.join(str(error).split())[:300]}") from None
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    settings |= {
        name: vocabulary.entries[vocabulary.roles[role]]
        for role, name in _ROLE_NAMES.items()
        if role in vocabulary.roles
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    template = Fields(container.path, container.metadata, "tokenizer.").text("chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return vocabulary


def _added(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The entries that no merge cuts, in the order of their ids."""
    special = vocabulary.control | set(vocabulary.roles.values())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": vocabulary.entries[index], **plain, "special": index in special}
        for index in sorted(special | vocabulary.own)
    ]


def _borders(fields: Fields, vocabulary: Vocabulary, begins: bool, ends: bool) -> dict[str, Any] | None:
    """The post-processor that puts BOS before a text and EOS after it; None if the file wants neither."""
    if not begins and not ends:
        return None
    around, text = {}, {"Sequence": {"id": "A", "type_id": 0}}
    for wanted, role in ((begins, "bos"), (ends, "eos")):
        if wanted:
            if role not in vocabulary.roles:
                raise fields.error(f"is damaged: it adds a {role.upper()} to every text and names none")
            around[role] = vocabulary.entries[vocabulary.roles[role]]
    single: list[dict[str, Any]] = [text]
    if begins:
        single.insert(0, {"SpecialToken": {"id": around["bos"], "type_id": 0}})
    if ends:
        single.append({"SpecialToken": {"id": around["eos"], "type_id": 0}})
    second = [{name: part | {"type_id": 1} for name, part in piece.items()} for piece in single]
    second[begins]["Sequence"]["id"] = "B"
    tokens = {
        token: {"id": token, "ids": [vocabulary.roles[role]], "tokens": [token]} for role, token in around.items()
    }
    return {"type": "TemplateProcessing", "single": single, "pair": single + second, "special_tokens": tokens}
