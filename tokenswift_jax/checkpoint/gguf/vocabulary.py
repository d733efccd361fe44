"""The entries of a GGUF file's vocabulary, and which of them are more than text."""

from __future__ import annotations

from dataclasses import dataclass

from tokenswift_jax.checkpoint.gguf.fields import Fields

_NORMAL, _UNKNOWN, _CONTROL, _OWN, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types
_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary with its special entries.

    Attributes:
      entries: text by id, without the padding entries that fill the vocabulary up to the model's size.
      mergeable: ids that merges may produce: plain text.
      control: ids that are not text, such as the end of a turn.
      own: ids that a person added to the vocabulary; they are text, but never cut.
      roles: ids by role (bos, eos, eot, eom, unknown, padding), as far as the file states them.
    """

    entries: dict[int, str]
    mergeable: frozenset[int]
    control: frozenset[int]
    own: frozenset[int]
    roles: dict[str, int]

    @property
    def ends(self) -> list[int]:
        """The ids that end a text, in ascending order."""
        return sorted({self.roles[role] for role in ("eos", "eot", "eom") if role in self.roles})


def read_vocabulary(fields: Fields, size: int) -> Vocabulary:
    """Takes the entries, their types and the ids of special ones from `tokenizer.ggml.`.

    Args:
      fields: the metadata of the tokenizer.
      size: rows of the model's embedding.

    Raises:
      UserError: no entries, more than `size`, an entry twice, a type or id that does not exist.
    """
    tokens = fields.values("tokens", str)
    if not tokens:
        raise fields.error("has no vocabulary (tokenizer.ggml.tokens)")
    if len(tokens) > size:
        raise fields.error(f"is damaged: its vocabulary has {len(tokens)} entries, its embedding {size} rows")
    types = fields.values("token_type", int) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens) or not set(types) <= set(range(7)):
        raise fields.error("is damaged: tokenizer.ggml.token_type does not fit the vocabulary")
    fields.ignore("token_type_count")
    entries = {
        index: token
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if not (kind == _UNUSED and token == f"[PAD{index}]")
    }
    if len(set(entries.values())) != len(entries):
        seen: set[str] = set()
        twice = next(token for token in entries.values() if token in seen or seen.add(token))
        raise fields.error(f"is damaged: its vocabulary has the entry {twice!r} twice")
    roles = {}
    for role in _ROLES:
        found = fields.index(f"{role}_token_id")
        if found is not None:
            if found not in entries:
                raise fields.error(f"is damaged: tokenizer.ggml.{role}_token_id {found} is not in its vocabulary")
            roles[role] = found

    def of(*kinds: int) -> frozenset[int]:
        return frozenset(index for index in entries if types[index] in kinds)

    return Vocabulary(entries, of(0, _NORMAL), of(_CONTROL, _UNKNOWN), of(_OWN), roles)
