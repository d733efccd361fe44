"""A corpus as token ids on disk: the first run tokenises it, and later runs map it into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.errors import NO_ROOM, UserError
from tokenswift_jax.paths import resolved
from tokenswift_jax.training.documents import Broken, Document, find_files, read_documents, strict_error

SHARD_TOKENS = 1 << 26
_DTYPES = ("uint16", "uint32")
_READ_TOKENS = 1 << 22  # tokens that the check of a stored corpus reads at once
_FORMAT = 2  # a change that gives other tokens or another layout for the same files raises it
_REPORT, _OFFSETS = "report.json", "offsets.npy"
_PART_CHARACTERS = 1 << 20  # characters that the tokenizer gets at once; it needs some hundred bytes a token


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of all documents, memory-mapped.

    Args:
      digest: sha256 of the token ids and of the documents' offsets; equal if and only if the data are equal.
      offsets: int64 [documents + 1], the start of each document in the sequence of all tokens.
      shards: uint16 or uint32 [tokens of the shard]; each document is in one shard.
      shard_starts: int64 [shards], the first token of each shard in the sequence of all tokens.
      highest: the highest token id in the corpus.
      broken: number of broken lines and files.
      examples: the first few of them, each with place and reason.
    """

    digest: str
    offsets: np.ndarray
    shards: tuple[np.ndarray, ...]
    shard_starts: np.ndarray
    highest: int
    broken: int
    examples: tuple[str, ...]

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    def document(self, index: int) -> np.ndarray:
        """The token ids of one document, memory-mapped."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        return self.read(int(self.offsets[index]), int(self.offsets[index + 1]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """The token ids start..stop-1 of the sequence of all tokens; they must be in one document."""
        shard = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        first = int(self.shard_starts[shard])
        return self.shards[shard][start - first : stop - first]

    def report(self) -> str:
        """A summary of the corpus for a person: one line, and one more for each example of a broken line."""
        summary = f"{self.documents:,} documents, {self.tokens:,} tokens"
        if not self.broken:
            return summary
        lines = [f"{summary}; {self.broken:,} broken, the first:", *self.examples]
        return "\n  ".join(lines)


def tokenise(
    paths: Sequence[str | Path], tokenizer: Any, cache_dir: str | Path, *, strict: bool, vocab_size: int
) -> Corpus:
    """The corpus of files, folders and patterns, tokenised into a folder of `cache_dir` or found there.

    The folder's name is a hash of the tokenizer and of the files' names, sizes and times; the folder appears whole or
    not at all. A text gets the special tokens that the tokenizer adds by itself, as a prompt does, and an EOS at its
    end; the text of a chat template gets none. Texts beyond a million characters are encoded in parts, cut at line
    ends; there, a tokenizer that marks the start of every text (such as Llama 2's) adds one more mark.

    Args:
      paths: files, folders and patterns.
      tokenizer: the tokenizer of the model.
      cache_dir: folder for the tokenised data.
      strict: a broken line or file is an error.
      vocab_size: the model's; every token id must be below it.

    Raises:
      UserError: no tokenizer, no document, a broken one with `strict`, ids outside the vocabulary, or a folder that
        cannot be written.
    """
    if tokenizer is None:
        raise UserError("this checkpoint has no tokenizer, and the data are text; add its tokenizer.json")
    files = find_files(paths)
    folder = Path(cache_dir) / _key(files, tokenizer)
    corpus = _stored(folder, lambda: _tokenised(folder, files, tokenizer, Broken(strict)))
    if strict and corpus.broken:
        raise strict_error(corpus.examples[0])
    if corpus.highest >= vocab_size:
        raise UserError(
            f"the tokenizer does not fit the model: the data have token id {corpus.highest}, "
            f"the vocabulary is 0..{vocab_size - 1}"
        )
    return corpus


def _key(files: Sequence[Path], tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    backend = {"vocabulary": tokenizer.get_vocab()} if fast is None else json.loads(fast.to_str())
    for set_by_earlier_calls in ("truncation", "padding"):
        backend.pop(set_by_earlier_calls, None)
    sources = [(str(resolved(file)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    what = [_FORMAT, backend, specials, tokenizer.chat_template, sources]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with folder.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(ImportError):  # without fcntl on this system, two runs at once both tokenise
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(folder: Path) -> Corpus | None:
    """The corpus of a folder; None if the folder or a file of it is missing, cut or damaged."""
    try:
        report = json.loads((folder / _REPORT).read_bytes())
        with (folder / _OFFSETS).open("rb") as file:
            offsets = np.lib.format.read_array(file, allow_pickle=False)
        shards = tuple(
            np.memmap(folder / _shard_name(index), dtype=report["dtype"], mode="r", shape=(tokens,))
            for index, tokens in enumerate(report["shards"])
        )
        starts = np.cumsum([0, *report["shards"]], dtype=np.int64)
        known = report["dtype"] in _DTYPES and type(report["broken"]) is int
        if not known or not shards or len(offsets) < 2 or offsets[-1] != starts[-1]:
            return None
        corpus = Corpus(
            digest=report["digest"],
            offsets=offsets,
            shards=shards,
            shard_starts=starts[:-1],
            highest=report["highest"],
            broken=report["broken"],
            examples=tuple(report["examples"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return corpus if _intact(corpus) else None


def _intact(corpus: Corpus) -> bool:
    """Whether the token ids have the digest and the highest id that the report states."""
    digest, highest = hashlib.sha256(), 0
    for shard in corpus.shards:
        for first in range(0, len(shard), _READ_TOKENS):
            part = np.ascontiguousarray(shard[first : first + _READ_TOKENS])
            digest.update(part.data)
            highest = max(highest, int(part.max()))
    digest.update(corpus.offsets.tobytes())
    return (corpus.digest, corpus.highest) == (f"{corpus.shards[0].dtype.name}-{digest.hexdigest()}", highest)


def corpus_of_ids(folder: Path, texts: Callable[[], Iterable[Sequence[int]]], highest_id: int) -> Corpus:
    """The corpus of a folder; if it is missing, this call writes it from texts(): token ids up to `highest_id`, no text
    empty.

    The folder appears whole or not at all; another process that wants it waits for the one that writes it.

    Raises:
      UserError: the folder cannot be written.
    """

    def fill(writer: _ShardWriter) -> dict[str, Any]:
        for ids in texts():
            writer.add(ids)
        return {"broken": 0, "examples": []}

    return _stored(folder, lambda: _write(folder, highest_id, fill))


def _stored(folder: Path, write: Callable[[], Corpus]) -> Corpus:
    corpus = _load(folder)
    if corpus is not None:
        return corpus
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            # Another process may have written it while this one waited.
            return _load(folder) or write()
    except OSError as error:
        reason = "the disk is full" if error.errno in NO_ROOM else error.strerror
        raise UserError(f"cannot write tokenised data to {folder.parent}: {reason}; choose another folder") from None


def _tokenised(folder: Path, files: Sequence[Path], tokenizer: Any, broken: Broken) -> Corpus:
    def fill(writer: _ShardWriter) -> dict[str, Any]:
        for document, ids in _encode(read_documents(files, tokenizer, broken), tokenizer):
            if ids:
                writer.add(ids)
            else:
                broken.add(document.place, "no token in it")
        if not writer.shards:
            raise UserError(_nothing(files, broken))
        return {"broken": broken.count, "examples": broken.examples}

    return _write(folder, max(tokenizer.get_vocab().values()), fill)


def _write(folder: Path, highest_id: int, fill: Callable[[_ShardWriter], dict[str, Any]]) -> Corpus:
    """Writes the documents that `fill` adds and the report that it returns, and reads them back. The caller must have
    the folder's lock."""
    prefix = f".{folder.name}-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # from a killed run, since this process has the lock
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        writer = _ShardWriter(temporary, highest_id)
        try:
            facts = fill(writer)
            report = writer.close() | facts
        finally:
            writer.abandon()
        with (temporary / _REPORT).open("w", encoding="utf-8") as file:
            json.dump(report, file)
            _sync(file)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    corpus = _load(folder)
    assert corpus is not None, folder
    return corpus


def _nothing(files: Sequence[Path], broken: Broken) -> str:
    named = f"{files[0]}" if len(files) == 1 else f"{len(files)} files ({files[0]}, ...)"
    first = f"; {broken.count} broken, the first {broken.examples[0]}" if broken.count else ""
    return f"the data are empty: no document in {named}{first}"


def _encode(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[Document, list[int]]]:
    specials = _own_specials(tokenizer)
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _PART_CHARACTERS:
            yield from _encode_batch(batch, tokenizer, specials)
            batch, characters = [], 0
    if batch:
        yield from _encode_batch(batch, tokenizer, specials)


def _encode_batch(
    batch: Sequence[Document], tokenizer: Any, specials: tuple[list[int], list[int]]
) -> Iterator[tuple[Document, list[int]]]:
    parts = [_parts(document.text) for document in batch]
    flat = [part for document in parts for part in document]
    encoded = iter(
        [
            ids
            for first in range(0, len(flat), 256)
            for ids in tokenizer(flat[first : first + 256], add_special_tokens=False, verbose=False)["input_ids"]
        ]
    )
    before, after = specials
    for document, pieces in zip(batch, parts, strict=True):
        ids = [token for _ in pieces for token in next(encoded)]
        if ids and not document.rendered:
            # A text that already contains its BOS or EOS gets no second one.
            ids = (before if ids[: len(before)] != before else []) + ids
            ids = ids + (after if ids[-len(after) :] != after else []) if after else ids
        yield document, ids


def _own_specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text by itself; after it always EOS, if any."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(index for index in range(len(whole)) if whole[index : index + len(plain)] == plain)
    before, after = whole[:start], whole[start + len(plain) :]
    eos = tokenizer.eos_token_id
    return before, after if eos is None or eos in after else [*after, eos]


def _parts(text: str) -> list[str]:
    parts, start = [], 0
    while len(text) - start > _PART_CHARACTERS:
        end = start + _PART_CHARACTERS
        middle = (start + end) // 2
        # Cut after a line, else before a word, because tokenizers begin a new token there anyway.
        line, word = text.rfind("\n", middle, end), text.rfind(" ", middle, end)
        stop = line + 1 if line >= 0 else word if word >= 0 else end
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]


class _ShardWriter:
    """Appends documents to shards of at most SHARD_TOKENS tokens, or of one longer document."""

    def __init__(self, folder: Path, highest_id: int):
        self.shards: list[int] = []
        self._folder = folder
        self._dtype = np.dtype(np.uint16 if highest_id < 1 << 16 else np.uint32)
        self._offsets = array("q", [0])
        self._digest = hashlib.sha256()
        self._highest = 0
        self._file: Any = None

    def add(self, ids: Sequence[int]) -> None:
        tokens = np.asarray(ids, self._dtype)
        if not self.shards or self.shards[-1] + len(tokens) > SHARD_TOKENS:
            self._finish()
            self._file = (self._folder / _shard_name(len(self.shards))).open("wb")
            self.shards.append(0)
        data = tokens.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._highest = max(self._highest, int(tokens.max()))
        self.shards[-1] += len(tokens)
        self._offsets.append(self._offsets[-1] + len(tokens))

    def close(self) -> dict[str, Any]:
        self._finish()
        offsets = np.asarray(self._offsets, np.int64)
        self._digest.update(offsets.tobytes())
        with (self._folder / _OFFSETS).open("wb") as file:
            np.save(file, offsets)
            _sync(file)
        digest = f"{self._dtype.name}-{self._digest.hexdigest()}"
        return {"dtype": self._dtype.name, "shards": self.shards, "highest": self._highest, "digest": digest}

    def abandon(self) -> None:
        """Closes the file of a run that failed; does nothing after `close`."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full, so the buffered data are lost anyway
                self._file.close()

    def _finish(self) -> None:
        if self._file is not None:
            _sync(self._file)
            self._file.close()
            self._file = None


def _sync(file: Any) -> None:
    # Without fsync, a power cut can leave a folder that looks whole but is not.
    file.flush()
    os.fsync(file.fileno())


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.bin"
