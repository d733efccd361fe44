"""The entries of a GGUF file's vocabulary, and which of them are more than text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.errors import warn

_NORMAL, _UNKNOWN, _CONTROL, _OWN, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types
_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
_NEEDED = ("bos", "eos")  # without the right ones, texts begin or end wrongly
_ROLE, _SPECIAL, _PLAIN, _FILLER = range(4)  # of entries with one text, a lower one replaces a higher one
_SHOWN = 10  # ids in a warning


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

    A role other than BOS and EOS whose id has no entry is left out with a warning, and so is a second entry of one text
    (`_copies`).

    Raises:
      UserError: no entries, more than `size`, a text twice, a type or id that does not exist.
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
    roles = _roles(fields, entries)
    for index in _copies(fields, entries, types, roles.values()):
        del entries[index]

    def of(*kinds: int) -> frozenset[int]:
        return frozenset(index for index in entries if types[index] in kinds)

    return Vocabulary(entries, of(0, _NORMAL), of(_CONTROL, _UNKNOWN), of(_OWN), roles)


def _roles(fields: Fields, entries: Mapping[int, str]) -> dict[str, int]:
    roles, absent = {}, []
    for role in _ROLES:
        found = fields.token(f"{role}_token_id")
        if found is None:
            continue
        if found in entries:
            roles[role] = found
        elif role in _NEEDED:
            raise fields.error(f"is damaged: tokenizer.ggml.{role}_token_id {found} is not in its vocabulary")
        else:
            absent.append(f"tokenizer.ggml.{role}_token_id {found}")
    if absent:
        warn(f"{fields.path} names ids that are not in its vocabulary and have no effect: {', '.join(absent)}")
    return roles


def _copies(fields: Fields, entries: Mapping[int, str], types: Sequence[int], roles: Collection[int]) -> list[int]:
    """The ids whose text another entry has too, and which that entry can replace.

    An entry with a role replaces those without, a special one replaces plain text, and the first filler the others.
    """

    if len(set(entries.values())) == len(entries):
        return []

    def rank(index: int) -> int:
        if index in roles:
            return _ROLE
        return _PLAIN if types[index] in (0, _NORMAL, _BYTE) else _FILLER if types[index] == _UNUSED else _SPECIAL

    ranks: dict[str, set[int]] = {}  # of the entries of each text
    copies = []
    for index in sorted(entries, key=lambda index: (rank(index), index)):
        others, own = ranks.setdefault(entries[index], set()), rank(index)
        if own in others and own in (_ROLE, _PLAIN):  # nothing tells which of the two the model knows
            raise fields.error(f"is damaged: its vocabulary has the entry {entries[index]!r:.80} twice")
        if others:
            copies.append(index)
        others.add(own)
    if copies:
        listed = ", ".join(f"{index} ({entries[index]!r:.40})" for index in copies[:_SHOWN])
        more = f" and {len(copies) - _SHOWN} more" if len(copies) > _SHOWN else ""
        warn(f"{fields.path} has entries twice in its vocabulary; these ids decode to no text: {listed}{more}")
    return copies
