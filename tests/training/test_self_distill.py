"""Texts that the target writes: its own draws after the data's beginnings, kept, and taken up again after a kill."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest

import tokenswift_jax as ts
from tests.training.small_runs import checkpoint_in
from tokenswift_jax.errors import UserError
from tokenswift_jax.training import self_distill
from tokenswift_jax.training.self_distill import choose_prompts, written_by_target
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shards import corpus_of_ids

SETTINGS = TrainingSettings(max_length=32, self_distill=5, seed=3, draft_cache=64)
TEXTS = [list(range(2, 60)), [7, 8, 9], [5] * 40, [1]]


@pytest.fixture
def corpus(tmp_path):
    return corpus_of_ids(tmp_path / "cache" / "data", lambda: iter(TEXTS), 127)


@pytest.fixture
def model(tmp_path):
    return checkpoint_in(tmp_path / "model", "llama2")


def test_prompts_begin_pieces_all_over_the_data_and_leave_each_a_token(corpus):
    # Pieces of 32 tokens: two of document 0, one of document 1, two of document 2, none of the one-token document 3.
    assert choose_prompts(corpus, range(4), SETTINGS) == [[2, 3, 4, 5], [34, 35, 36, 37], [7, 8], [5] * 4, [5] * 4]
    longer = replace(SETTINGS, self_distill_prompt=30)
    assert choose_prompts(corpus, range(1, 3), longer) == [[7, 8], [7, 8], [5] * 30, [5] * 30, [5] * 7]
    few = choose_prompts(corpus, range(1, 2), SETTINGS)
    assert few == [[7, 8]] * 5
    with pytest.raises(UserError, match="no document has two tokens"):
        choose_prompts(corpus, range(3, 4), SETTINGS)


def written(model, corpus, tmp_path, settings=SETTINGS):
    say = io.StringIO()
    found = written_by_target(model, corpus, range(4), settings, tmp_path / "cache", say)
    return found, say.getvalue()


def test_texts_are_the_targets_own_and_are_kept(model, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(self_distill, "_MOST_ROWS", 2)
    found, printed = written(model, corpus, tmp_path)
    assert "2/5 texts" in printed
    assert "5/5 texts" in printed
    plain = ts.SpeculationConfig(mode="autoregressive")
    loaded = ts.load(model)
    for index, prompt in enumerate(choose_prompts(corpus, range(4), SETTINGS)):
        sampling = ts.SamplingConfig(seed=3, sequence=index)
        alone = ts.generate(loaded, prompt, sampling, plain, max_new_tokens=32 - len(prompt))
        np.testing.assert_array_equal(found.document(index), prompt + alone.token_ids)

    def refuse(*arguments, **named):
        raise AssertionError("written a second time")

    assert list((tmp_path / "cache").glob("*.jsonl")) == []
    monkeypatch.setattr(self_distill, "generate", refuse)
    assert written(model, corpus, tmp_path)[0].digest == found.digest
    for other in (dict(seed=4), dict(self_distill=6), dict(max_length=33), dict(self_distill_prompt=5)):
        with pytest.raises(AssertionError, match="a second time"):
            written(model, corpus, tmp_path, TrainingSettings(**({"max_length": 32, "self_distill": 5} | other)))


def torn(data):
    return data + b"[3, 4"


def flipped(data):
    """A bit of the second text's last digits; the text before it stays."""
    at = data.index(b"\n", data.index(b"\n") + 1) - 30
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def without_checksums(data):
    return re.sub(rb', "crc32": "[0-9a-f]{8}"', b"", data)


@pytest.mark.parametrize(("damage", "begins"), [(torn, 2), (flipped, 1), (without_checksums, 0)])
def test_a_killed_run_goes_on_after_its_last_whole_text(model, corpus, tmp_path, monkeypatch, damage, begins):
    expected = written(model, corpus, tmp_path / "whole")[0].digest
    monkeypatch.setattr(self_distill, "_MOST_ROWS", 2)
    generate, sequences = self_distill.generate, []

    def killed_later(model, prompts, sampling, *arguments, **named):
        sequences.append(sampling.sequence)
        if sampling.sequence == 2 and len(sequences) == 2:
            raise MemoryError
        return generate(model, prompts, sampling, *arguments, **named)

    monkeypatch.setattr(self_distill, "generate", killed_later)
    with pytest.raises(MemoryError):
        written(model, corpus, tmp_path)
    (journal,) = (tmp_path / "cache").glob("self-*.jsonl")
    journal.write_bytes(damage(journal.read_bytes()))
    assert written(model, corpus, tmp_path)[0].digest == expected
    assert sequences == [0, 2, *range(begins, 5, 2)]


def test_ctrl_c_while_the_target_writes_keeps_no_cut_text(model, corpus, tmp_path, monkeypatch):
    generate = self_distill.generate

    def interrupted(*arguments, **named):
        return [replace(result, finish_reason="interrupted") for result in generate(*arguments, **named)]

    monkeypatch.setattr(self_distill, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(model, corpus, tmp_path)
    (journal,) = (tmp_path / "cache").glob("self-*.jsonl")
    assert journal.read_bytes() == b""
    assert not [path for path in (tmp_path / "cache").glob("self-*") if path.is_dir()]
