"""The benchmark: ratios of scripted numbers, rounds, the profile's arithmetic, and a smoke run on a tiny checkpoint."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokenswift_jax.checkpoint.save import save, state_tensors
from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.profiler import Trace, covered, read_trace
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/benchmark.py does

import benchmark
from benchmarking.rows import comparison, measures, same_leading_tokens
from benchmarking.runs import Contender, Results, Run, paired_ratios, play
from benchmarking.texts import passages_of_files, random_ids
from benchmarking.transformers_generate import timed_run

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 67,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
    "dtype": "float32",
    "tokenswift": {"num_heads": 1, "head_type": "chained", "node_set": None, "base": None},
}


def scripted(seconds, tokens=11, iterations=5, compiled=0.0, ids=None):
    """A run whose 10 decoded tokens took `seconds`."""
    ids = list(range(tokens)) if ids is None else ids
    return Run(ids, seconds, seconds + 0.01, iterations, 0.5, compiled)


def contender(name, runs, calls, fixed=True):
    def run(index):
        calls.append((name, index))
        return runs.pop(0)

    return Contender(name, run, {}, fixed)


def test_run_counts_only_what_was_decoded():
    run = Run(list(range(11)), 2.0, 3.0, 4, 0.5, 0.0)
    assert (run.ms_per_token, run.wall_ms_per_token, run.tokens_per_iteration) == (200.0, 300.0, 2.5)
    # The streamer saw the prompt at 10 s, prefill's 3 tokens at 12 s, then passes of 1 and 4 tokens.
    other = timed_run(list(range(8)), begun=9.0, times=[10.0, 12.0, 12.5, 13.5], counts=[100, 3, 1, 4])
    assert (other.prefill_seconds, other.decode_seconds, other.iterations) == (3.0, 1.5, 2)
    assert (other.ms_per_token, other.tokens_per_iteration) == (300.0, 2.5)


def test_ratios_pair_runs_of_one_round():
    """The machine is ten times slower in the second round; the ratio of medians would be 1.0 / 0.8."""
    results = Results(
        {
            "autoregressive": [scripted(s) for s in (1.0, 10.0, 1.0)],
            "tokenswift": [scripted(s) for s in (0.5, 8.0, 0.8)],
            "transformers": [scripted(s) for s in (4.0, 20.0, 2.0)],
        },
        {"autoregressive": 1.0, "tokenswift": 2.5, "transformers": 0.0},
    )
    fields = comparison(results, "tokenswift", greedy=True)
    assert fields["speed_vs_autoregressive"] == {"median": 1.25, "min": 1.25, "max": 2.0}
    assert fields["speed_vs_transformers"] == {"median": 2.5, "min": 2.5, "max": 8.0}
    assert fields["leading_tokens_equal_to_autoregressive"] == 11
    assert "speed_vs_autoregressive" not in comparison(results, "autoregressive", greedy=True)
    assert "leading_tokens_equal_to_autoregressive" not in comparison(results, "transformers", greedy=False)
    own = measures(results, "tokenswift")
    assert own["ms_per_token"] == {"median": 80.0, "min": 50.0, "max": 800.0}
    assert own["wall_ms_per_token"]["median"] == 81.0
    assert own["tokens_per_second"] == {"median": 12.5, "min": 1.25, "max": 20.0}
    assert own["compile_seconds_excluded"] == 2.5
    assert (own["runs"], own["new_tokens"]) == (3, 11)


def test_paired_ratios_need_pairs():
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == {"median": 2.5, "min": 2.0, "max": 3.0}
    with pytest.raises(ValueError, match="argument 2"):
        paired_ratios([1.0, 2.0], [1.0])


def test_same_leading_tokens_is_the_worst_round():
    results = Results(
        {
            "a": [scripted(1.0, ids=[1, 2, 3]), scripted(1.0, ids=[1, 2, 3])],
            "b": [scripted(1.0, ids=[1, 2, 3]), scripted(1.0, ids=[1, 9, 3])],
        },
        {},
    )
    assert same_leading_tokens(results, "a", "b") == 1
    assert same_leading_tokens(results, "a", "a") == 3


def test_rounds_turn_and_warm_up():
    calls = []
    fixed = contender("plain", [scripted(1.0, compiled=3.0), *[scripted(1.0)] * 3], calls)
    auto = contender("auto", [scripted(1.0, compiled=c) for c in (2.0, 1.0, 0.0, 0.0, 0.5, 0.0)], calls, fixed=False)
    results = play([fixed, auto], 3, lambda message: None)
    assert calls[:4] == [("plain", 0), ("auto", 0), ("auto", 1), ("auto", 2)]
    assert calls[4:] == [("plain", 0), ("auto", 0), ("auto", 1), ("plain", 1), ("plain", 2), ("auto", 2)]
    assert measures(results, "plain")["compile_seconds_excluded"] == 3.0
    assert measures(results, "auto")["compile_seconds_excluded"] == 3.5


def test_a_timed_run_that_compiles_is_an_error():
    late = contender("plain", [scripted(1.0, compiled=3.0), scripted(1.0), scripted(1.0, compiled=0.2)], [])
    with pytest.raises(RuntimeError, match=r"plain compiled for 0\.20 s"):
        play([late], 3, lambda message: None)


def test_covered_is_the_length_of_the_union():
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts = rng.integers(0, 90, 12)
        intervals = [(int(s), int(s + d)) for s, d in zip(starts, rng.integers(0, 20, 12), strict=True)]
        hit = np.zeros(200, bool)
        for begin, end in intervals:
            hit[begin:end] = True
        assert covered(intervals, (20, 80)) == hit[20:80].sum()


def test_idle_share_of_a_profile():
    def event(name, start, duration):
        return SimpleNamespace(name=name, start_ns=start, duration_ns=duration)

    def line(name, *events):
        return SimpleNamespace(name=name, events=events)

    host = SimpleNamespace(
        name="/host:CPU",
        lines=[
            line("python", event("decode", 100, 100), event("dispatch", 100, 100)),
            line("tf_XLAEigen/1", event("dot.1", 90, 60), event("dot.1", 190, 40)),
            line("tf_XLAPjRtCpuClient/2", event("while.2", 140, 20)),
        ],
    )
    trace = read_trace(SimpleNamespace(planes=[host]))
    assert trace.idle_share == pytest.approx(0.3)  # busy 100..160 and 190..200
    assert trace.operations == {"dot.1": [0.06, 0.04], "while.2": [0.02]}
    gpu = SimpleNamespace(name="/device:GPU:0", lines=[line("Stream #1", event("gemm", 100, 25))])
    assert read_trace(SimpleNamespace(planes=[host, gpu])).idle_share == pytest.approx(0.75)
    with pytest.raises(RuntimeError, match="0 decodes"):
        read_trace(SimpleNamespace(planes=[gpu]))
    assert Trace((0, 10), [], {}).idle_share == 1


def test_passages_are_spread_over_the_books(tmp_path):
    model = SimpleNamespace(encode=lambda text: list(text.encode()), config=SimpleNamespace(vocab_size=256))
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("".join(chr(32 + index) for index in range(90)))
    second.write_text("~" * 30)
    prompts = passages_of_files(model, [first, second], 10, 3)
    assert [passage[0] for passage in prompts.passages] == [32 + 30, ord("~"), 32 + 60]
    assert {len(passage) for passage in prompts.passages} == {10}
    assert prompts.of_round(4) == prompts.passages[1]
    assert prompts.first(2).passages[2] == [92, 93]
    with pytest.raises(UserError, match=r"second\.txt has 30 tokens"):
        passages_of_files(model, [first, second], 31, 2)
    ids = random_ids(model, 50, 2, seed=1)
    assert ids.passages[0] != ids.passages[1]
    assert ids.passages == random_ids(model, 50, 2, seed=1).passages


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random model with heads and without a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = model_config(HF_CONFIG)
    _, state = nnx.split(Decoder(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(3)))
    save(folder, HF_CONFIG, state_tensors(state))
    return folder


def test_quick_run_measures_every_section(checkpoint, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    flags = ["--quick", "--temperatures", "0", "--modes", "autoregressive,tokenswift", "--rounds", "1"]
    assert benchmark.main(["--model", str(checkpoint), "--output", str(output), *flags]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    torch = importlib.util.find_spec("torch") is not None
    ours = ["autoregressive", "tokenswift"]
    assert [row["contender"] for row in rows if row["section"] == "speed"] == ours + (
        ["transformers", "transformers, prompt lookup"] if torch else []
    )
    assert [row["text"] for row in rows if row["section"] == "auto-long"] == ["greedy"] * 2
    assert [row["capacity"] for row in rows if row["section"] == "capacity"] == [256, 1024] * 2
    assert [row["contender"] for row in rows if row["section"] == "host"] == ours
    for row in rows:
        assert row["platform"] == "cpu"
        assert row["dtype"] == "float32"
        assert row["cores"] >= 1
        assert {"jax", "python", "tokenswift_jax"} <= set(row["versions"])
        assert row["prompt"]["tokens"] == row["prefix"] == 64
        assert row["prompt"]["source"]
        assert row["new_tokens"] == (96 if row["section"] == "auto-long" else 24)
        assert 0 < row["ms_per_token"]["min"] <= row["ms_per_token"]["median"] <= row["ms_per_token"]["max"]
        # Every mode, and transformers' greedy search, give plain decoding's text.
        assert row.get("leading_tokens_equal_to_autoregressive", row["new_tokens"]) == row["new_tokens"]
    by_contender = {row["contender"]: row for row in rows if row["section"] == "speed"}
    plain, drafted = by_contender["autoregressive"], by_contender["tokenswift"]
    assert (drafted["schedule"], drafted["node_budget"], drafted["mode"]) == ("fused", 3, "tokenswift")
    assert plain["tokens_per_iteration"]["median"] == 1
    assert drafted["speed_vs_autoregressive"]["median"] == pytest.approx(
        plain["ms_per_token"]["median"] / drafted["ms_per_token"]["median"], rel=1e-3
    )
    for row in rows:
        if row["section"] == "host":
            assert row["host_share"]["median"] >= 0
            # Processor time and wall time are two clocks: a thread that never waits may read a little over 1.
            assert 0 < row["caller_share"]["median"] < 1.01
        if row["section"] == "capacity" and row["capacity"] == 1024:
            assert row["time_vs_capacity_256"]["median"] > 0
        if row["section"] == "auto-long" and row["mode"] == "auto":
            first = row["schedule_trace"][0]  # plain decoding, or a look at the heads
            assert (first["from_token"], first["mode"]) in {(1, "autoregressive"), (1, "tokenswift")}
            assert row["wall_speed_vs_autoregressive"]["median"] > 0
    printed = capsys.readouterr().out
    assert printed.strip() == benchmark.format_table(rows)
    assert printed.count("\n") == len(rows) + 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--new-tokens", "2"], "--new-tokens 2: at least 3"),
        (["--prompt-file", "absent.txt"], "no tokenizer|absent.txt"),
        (["--output", "absent/rows.jsonl"], "there is no folder absent"),
    ],
)
def test_bad_arguments(checkpoint, capsys, flags, message):
    assert benchmark.main(["--quick", "--model", str(checkpoint), "--output", "never.jsonl", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert any(part in captured.err for part in message.split("|"))
    assert not Path("never.jsonl").exists()
