"""The paper's protocol: windows and digests of scripted records, runs on a tiny checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenswift_jax.checkpoint.save import save, state_tensors
from tokenswift_jax.errors import UserError
from tokenswift_jax.token_log import from_columns

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/benchmark.py does

import benchmark
import small_models
from benchmarking.protocol import compared, digests, leading_equal, speed_over_equal_windows
from benchmarking.rows import RowFile, labels_of
from benchmarking.settings import CONTENDERS, speculation_of


def records(offsets, milliseconds):
    zeros = [0] * len(offsets)
    return from_columns(range(len(offsets)), zeros, offsets, zeros, [value / 1e3 for value in milliseconds])


def test_windows_leave_prefills_token_out_and_count_the_iterations_that_begin_in_them():
    found = records([-1, 0, 1, 2, 0, 0, 1, 2, 3], [9, 1, 1, 1, 3, 2, 2, 2, 2]).by_window(3)
    assert found == [
        {"tokens": 3, "ms_per_token": 1.0, "tokens_per_iteration": 3.0},
        {"tokens": 3, "ms_per_token": pytest.approx(7 / 3, rel=1e-4), "tokens_per_iteration": 1.5},
        {"tokens": 2, "ms_per_token": 2.0, "tokens_per_iteration": None},  # its iteration began before it
    ]


def test_speeds_are_over_the_windows_that_both_have():
    def windows(*pairs):
        return [{"tokens": tokens, "ms_per_token": time} for tokens, time in pairs]

    ours, theirs = windows((4, 1.0), (4, 2.0), (4, 8.0), (3, 1.0)), windows((4, 3.0), (4, 9.0), (2, 1.0))
    assert speed_over_equal_windows(ours, theirs) == (8, 4.0)  # 48 ms against 12
    assert speed_over_equal_windows(ours, ours) == (15, 1.0)
    assert speed_over_equal_windows(ours, windows((3, 1.0))) is None


def test_digests_tell_how_far_two_texts_are_one():
    text = np.random.default_rng(0).integers(0, 50, 10).tolist()
    assert [leading_equal(digests(text, 4), digests(text, 4), 4, 10)] == [10]
    for place, leading in ((0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8)):
        other = [token + (index == place) for index, token in enumerate(text)]
        assert leading_equal(digests(other, 4), digests(text, 4), 4, 10) == leading


def test_a_row_is_compared_with_plain_decoding_and_with_transformers():
    windows = [{"tokens": 2, "ms_per_token": 1.0}, {"tokens": 2, "ms_per_token": 2.0}]
    plain = {"latency": windows, "latency_coarse": windows, "text_digests": ["a", "b", "c"]}
    other = {"latency": [{"tokens": 2, "ms_per_token": 5.0}]}
    fast = [{"tokens": 2, "ms_per_token": 0.5}, {"tokens": 2, "ms_per_token": 0.5}]
    row = {"latency": fast, "latency_coarse": fast, "text_digests": ["a", "b", "x"]}
    row |= {"window_tokens": [2, 2], "new_tokens": 5}
    assert compared(row, {"autoregressive": plain, "transformers": other}) == {
        "speed_vs_autoregressive": {"median": 3.0, "min": 3.0, "max": 3.0},
        "speed_vs_autoregressive_tokens": 4,
        "speed_vs_autoregressive_coarse": [2.0, 4.0],
        "speed_vs_transformers": {"median": 10.0, "min": 10.0, "max": 10.0},
        "speed_vs_transformers_tokens": 2,
        "leading_tokens_equal_to_autoregressive": 4,
    }
    assert compared(row, {}) == {}


def test_contenders_draft_as_they_are_called():
    made = {name: labels_of(speculation_of(name, 5, 64)) for name in CONTENDERS if name != "transformers"}
    stated = {
        name: (one["mode"], one["schedule"], one["node_budget"], one["draft_cache"]) for name, one in made.items()
    }
    assert stated == {
        "autoregressive": ("autoregressive", None, None, None),
        "tokenswift-partial": ("tokenswift", "partial", 5, 64),
        "tokenswift-fused": ("tokenswift", "fused", 5, None),
        "medusa": ("medusa", None, 5, None),
        "selfspec": ("selfspec", None, None, 64),
        "ngram": ("ngram", None, 5, None),
        "auto": ("auto", None, None, 64),
    }


def test_a_row_is_found_by_what_was_asked_and_where(tmp_path):
    path, here = tmp_path / "rows.jsonl", {"date": "today", "cpu": "mine", "load_average_at_start": [1.0]}
    RowFile(path, here)({"contender": "a", "sizes": (1, 2), "new_tokens": 5})
    with path.open("a") as file:
        file.write('{"torn": ')
    later = RowFile(path, here | {"date": "tomorrow", "load_average_at_start": None})
    assert path.read_text().endswith("}\n")
    found = later.find({"contender": "a", "sizes": (1, 2)})
    assert found is not None
    assert (found["new_tokens"], found["date"]) == (5, "today")
    assert later.find({"contender": "a", "sizes": (1, 3)}) is None
    assert RowFile(path, here | {"cpu": "another"}).find({"contender": "a"}) is None
    path.write_text("no rows\n")
    with pytest.raises(UserError, match="JSON lines"):
        RowFile(path, here)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model whose drafts are good, without a tokenizer."""
    model = small_models.successor_model(layers=1, heads=1)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "tokenswift": {"num_heads": 1, "head_type": "chained", "node_set": None, "base": None},
    }
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, config, state_tensors(model.params))
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory):
    """The file of a killed run that was continued."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    flags = ["--model", str(checkpoint), "--output", str(path), "--quick", "--rounds", "1"]
    protocol = [*flags, "--sections", "protocol", "--contenders"]
    assert benchmark.main([*protocol, "autoregressive"]) == 0
    with path.open("a") as file:
        file.write('{"section": "protocol", "conte')
    assert benchmark.main([*protocol, "tokenswift-fused,autoregressive", "--audit"]) == 0
    return path


def test_a_killed_protocol_goes_on_and_states_what_the_paper_states(measured, capsys):
    plain, drafted = [row for row in map(json.loads, measured.open()) if row["section"] == "protocol"]
    assert (plain["contender"], drafted["contender"]) == ("autoregressive", "tokenswift-fused")
    for row in (plain, drafted):
        assert row["new_tokens"] == row["asked_tokens"] == 48
        assert (row["prefix"], row["sampling"], row["temperature"]) == (64, "checkpoint", 1.0)
        assert [window["tokens"] for window in row["latency"]] == [8] * 5 + [7]
        assert [window["tokens"] for window in row["latency_coarse"]] == [16, 16, 15]
        assert len(row["load_average_at_begin"]) == len(row["load_average_at_end"]) == 3
        assert row["distinct_n"] == plain["distinct_n"]
    assert drafted["leading_tokens_equal_to_autoregressive"] == 48
    assert drafted["speed_vs_autoregressive_tokens"] == 47
    assert drafted["accepted_tokens"] > 10
    assert drafted["acceptance_rate"] == drafted["accepted_tokens"] / drafted["draft_depth"]
    assert drafted["ngram_share"] == drafted["ngram_accepted_tokens"] / drafted["accepted_tokens"]
    assert drafted["audit"]["positions"] == 48
    assert (drafted["audit"]["mismatches"], drafted["audit"]["failed"]) == (0, False)


def test_flags_that_the_checkpoint_or_the_draft_cache_cannot_serve(checkpoint, tmp_path, capsys):
    flags = ["--quick", "--model", str(checkpoint), "--output", str(tmp_path / "never.jsonl"), "--sections", "protocol"]
    for wrong, message in (
        (["--draft-cache", "20"], "draft_cache"),
        (["--tokens", "2"], "--tokens 2: at least 3"),
        (["--passages", "0"], "--passages 0: at least 1"),
        (["--prompt-file", str(tmp_path)], "has no *.txt"),
    ):
        assert benchmark.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "never.jsonl").exists()
