"""Tokenised once: what the shards hold, when they are used again, what an interruption leaves."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from surfaces.tokenizers_made_here import byte_level, metaspace
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tokenswift_jax.errors import UserError
from tokenswift_jax.training import shards
from tokenswift_jax.training.shards import tokenise

TEXTS = ("the cat", "and the song. 日本語\n\nthe dog " * 20, "naïve")
VOCABULARY = 400


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index, text in enumerate(TEXTS):
        (folder / f"{index}.txt").write_bytes(text.encode())
    return folder


def run(data, cache, tokenizer=None, strict=False, vocab_size=VOCABULARY):
    return tokenise([data], tokenizer or byte_level(), cache, strict=strict, vocab_size=vocab_size)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def adding_specials() -> PreTrainedTokenizerFast:
    """A tokenizer that writes BOS itself, before each text."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, eos_token="<|end|>")
    wrapped.add_special_tokens({"bos_token": "<|begin|>"})
    begin = wrapped.bos_token_id
    wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return wrapped


@pytest.mark.parametrize("tokenizer", [byte_level(), metaspace()], ids=["bytes", "metaspace"])
def test_documents_are_the_tokenizers_ids_and_eos(data, tmp_path, tokenizer):
    corpus = run(data, tmp_path / "cache", tokenizer)
    assert corpus.documents == 3
    for index, text in enumerate(TEXTS):
        np.testing.assert_array_equal(corpus.document(index), [*ids(tokenizer, text), tokenizer.eos_token_id])
    assert corpus.tokens == sum(len(ids(tokenizer, text)) + 1 for text in TEXTS)
    assert corpus.highest == max(max(ids(tokenizer, text)) for text in TEXTS)
    assert corpus.document(0).dtype == np.uint16
    assert isinstance(corpus.shards[0], np.memmap)


def test_bos_comes_once_and_eos_too(tmp_path):
    tokenizer = adding_specials()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    (tmp_path / "a.jsonl").write_text('{"text": "the"}\n{"text": "<|begin|>the<|end|>"}\n')
    corpus = run(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
    expected = [begin, *ids(tokenizer, "the"), end]
    assert [corpus.document(index).tolist() for index in range(2)] == [expected, expected]


def test_what_a_template_wrote_stays_as_it_is(tmp_path):
    tokenizer = adding_specials()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "the cat"}]}\n')
    corpus = run(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
    assert corpus.document(0).tolist() == [tokenizer.bos_token_id, *ids(tokenizer, "the cat")]


def test_documents_fill_many_shards_and_never_two(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    parts = run(data, tmp_path / "many")
    sizes = np.diff(whole.offsets)
    assert sizes[1] > 100  # a shard of its own
    assert [len(shard) for shard in parts.shards] == sizes.tolist()
    for index in range(3):
        np.testing.assert_array_equal(parts.document(index), whole.document(index))
    assert parts.digest == whole.digest


def test_long_texts_are_encoded_in_parts(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "one")
    monkeypatch.setattr(shards, "_PART_CHARACTERS", 50)
    calls = []
    tokenizer = Counting(calls)
    parts = run(data, tmp_path / "parts", tokenizer)
    assert max(len(text) for text in calls) <= 50
    assert "".join(calls[2:]) == "".join(TEXTS)  # after the probe for the tokenizer's own special tokens
    # This tokenizer merges nothing across a line's end.
    assert parts.digest == whole.digest


class Counting:
    """A tokenizer that keeps the texts it was given."""

    def __init__(self, calls):
        self._calls = calls

    def __getattr__(self, name):
        return getattr(byte_level(), name)

    def __call__(self, texts, **options):
        self._calls.extend([texts] if isinstance(texts, str) else texts)
        return byte_level()(texts, **options)


def test_the_second_run_tokenises_nothing(data, tmp_path):
    calls = []
    first = run(data, tmp_path / "cache", Counting(calls))
    assert set(TEXTS) <= set(calls)
    calls.clear()
    again = run(data, tmp_path / "cache", Counting(calls))
    assert calls == []
    assert (again.digest, again.report()) == (first.digest, first.report())
    np.testing.assert_array_equal(again.document(1), first.document(1))


def test_another_file_or_tokenizer_is_another_corpus(data, tmp_path):
    cache = tmp_path / "cache"
    first = run(data, cache)
    (data / "0.txt").write_text("the rat")
    changed = run(data, cache)
    assert changed.digest != first.digest
    assert run(data, cache, metaspace()).digest != changed.digest
    templated = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, eos_token="<|end|>")
    templated.chat_template = "{{ messages }}"
    run(data, cache, templated)
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 4


def test_the_digest_is_of_the_data_not_of_where_they_are(data, tmp_path):
    first = run(data, tmp_path / "cache")
    data.rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "0.txt", (1, 1))
    assert run(tmp_path / "moved", tmp_path / "cache").digest == first.digest


def test_a_cache_with_files_cut_or_missing_is_written_again(data, tmp_path):
    cache = tmp_path / "cache"
    first = run(data, cache)
    (folder,) = (entry for entry in cache.iterdir() if entry.is_dir())
    for damage in ("shard-00000.bin", "offsets.npy", "report.json"):
        file = folder / damage
        file.write_bytes(file.read_bytes()[:-1])
        mended = run(data, cache)
        np.testing.assert_array_equal(mended.document(2), first.document(2))
        file.unlink()
        assert run(data, cache).digest == first.digest


def test_a_flipped_bit_in_the_cache_is_found(data, tmp_path):
    cache = tmp_path / "cache"
    first = run(data, cache)
    (folder,) = (entry for entry in cache.iterdir() if entry.is_dir())
    for name in ("shard-00000.bin", "offsets.npy"):
        whole = (folder / name).read_bytes()
        for place in (len(whole) - 1, len(whole) // 2):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert run(data, cache).digest == first.digest
            assert (folder / name).read_bytes() == whole


WRONG = [b"[]", b"5", b"[" * 10_000, {"broken": "foo"}, {"examples": 5}]
WRONG += [{name: value} for name in ("dtype", "shards", "highest") for value in (None, 5, "foo", [], [-3], "float32")]


@pytest.mark.parametrize("damaged", WRONG, ids=lambda damaged: str(damaged)[:30])
def test_a_report_of_the_cache_that_is_wrong_is_written_again(data, tmp_path, damaged):
    cache = tmp_path / "cache"
    first = run(data, cache)
    (file,) = cache.glob("*/report.json")
    whole = file.read_bytes()
    file.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(json.loads(whole) | damaged).encode())
    assert run(data, cache).digest == first.digest
    assert file.read_bytes() == whole


KILLED = """
import os, signal, sys
from surfaces.tokenizers_made_here import byte_level
from tokenswift_jax.training import shards
shards.os.replace = lambda *places: os.kill(os.getpid(), signal.SIGKILL)
shards.tokenise([sys.argv[1]], byte_level(), sys.argv[2], strict=False, vocab_size=400)
"""


def test_a_killed_write_is_no_cache_and_leaves_nothing(data, tmp_path):
    cache = tmp_path / "cache"
    tests = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": tests}
    killed = subprocess.run([sys.executable, "-c", KILLED, data, cache], env=environment, check=False)
    assert killed.returncode == -9
    (leftover,) = (entry for entry in cache.iterdir() if entry.is_dir())
    assert (leftover / "report.json").is_file()  # all but the last step was done
    corpus = run(data, cache)
    np.testing.assert_array_equal(corpus.document(0), [*ids(byte_level(), TEXTS[0]), 0])
    assert not leftover.exists()


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")])
def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(data, tmp_path, monkeypatch, code, reason):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    cache = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(shards.os, "fsync", refuse)
        with pytest.raises(UserError, match=reason) as error:
            run(data, cache)
    assert "\n" not in str(error.value)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []
    assert run(data, cache).documents == 3


def test_broken_lines_are_reported_again_and_strict_refuses_them(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "the cat"}\n{"text": 1}\n')
    reports = [run(file, tmp_path / "cache").report() for _ in range(2)]
    size = len(ids(byte_level(), "the cat")) + 1
    expected = f'1 documents, {size} tokens; 1 broken, the first:\n  {file}:2: "text" has to be a string, not a number'
    assert reports == [expected, expected]
    for cache in ("cache", "fresh"):
        with pytest.raises(UserError, match=r'a\.jsonl:2: "text" has to be a string'):
            run(file, tmp_path / cache, strict=True)
    assert [entry for entry in (tmp_path / "fresh").iterdir() if entry.is_dir()] == []


def test_empty_data(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n\n")
    with pytest.raises(UserError, match=r"the data are empty: no document in .*a\.jsonl$"):
        run(file, tmp_path / "cache")
    file.write_text("{}\n")
    with pytest.raises(UserError, match=r'empty: .*; 1 broken, the first .*a\.jsonl:1: neither "text"'):
        run(file, tmp_path / "cache")


def test_a_tokenizer_that_does_not_fit(data, tmp_path):
    highest = run(data, tmp_path / "cache").highest
    assert run(data, tmp_path / "cache", vocab_size=highest + 1).documents == 3
    with pytest.raises(UserError, match="this checkpoint has no tokenizer"):
        tokenise([data], None, tmp_path / "cache", strict=False, vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=f"token id {highest}, the vocabulary is 0..{highest - 1}"):
        run(data, tmp_path / "cache", vocab_size=highest)
