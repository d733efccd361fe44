"""The main job as a person runs it: the command in a process of its own, journals after a kill, checkpoints there and
back, and the Python functions, all on the bundled demo model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

import tokenswift_jax as ts
from convert.export import export
from convert.hf import convert
from tokenswift_jax.cli.generate import DEMO_PROMPT, main
from tokenswift_jax.sampling import resolve_sampling

ROOT = Path(__file__).parents[1]
FIELDS = [
    *("model", "mode", "seed", "sequence", "device"),
    *("dtype", "versions", "prompt_tokens", "generated_tokens", "token_ids"),
    *("finish_reason", "iterations", "draft_depth", "accepted_tokens"),
    *("ngram_accepted_tokens", "acceptance_rate", "mean_accepted_length", "accepted_per_position"),
    *("schedule_trace", "compile_seconds", "prefill_seconds", "decode_seconds"),
    *("tokens_per_second", "latency", "distinct_n", "audit"),
]
PROMPT = (  # more than the 32 tokens that a short prefill takes, so that every test here runs the same programs
    "The old house stood at the end of the lane, and nobody in the village could remember a time when it had not been "
    "empty. On the first day of winter a light was seen in the upper window."
)
DRAFTED = ts.SpeculationConfig(mode="medusa", node_budget=3)
CAPACITY = 2048  # one for all, the longest text's, so that each program compiles once
FLAGS = ["--mode", "medusa", "--node-budget", "3", "--capacity", str(CAPACITY), "--ignore-eos", "--quiet"]
COUNT = 60
LIMITS = {"max_new_tokens": COUNT, "ignore_eos": True, "capacity": CAPACITY}
GREEDY = ts.SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of what is installed: the packages, the demo among them.

    With the kernels as Numba compiled them: without these, the first command compiles them again (20 s).
    """
    site = tmp_path_factory.mktemp("site")
    for package in ("tokenswift_jax", "pallas_kernels"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("*.pyc*", "*.tmp*"))
    return site


@pytest.fixture(scope="module")
def folder(site):
    return site / "tokenswift_jax" / "demo_model"


@pytest.fixture(scope="module")
def start(site):
    """Starts the command in a process of its own; programs compiled by one are there for the next."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    environment |= {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(site / "caches"), "HF_HUB_OFFLINE": "1"}

    def start(cwd, *words):
        command = [sys.executable, "-m", "tokenswift_jax.generate", *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)

    return start


@pytest.fixture(scope="module")
def demo(folder):
    return ts.load(folder)


@pytest.fixture(scope="module")
def sampling(demo):
    """The checkpoint's own: penalty and min-p."""
    return resolve_sampling({}, demo.generation_config)


@pytest.fixture(scope="module")
def reference(demo):
    return ts.generate(demo, PROMPT, None, DRAFTED, **LIMITS)


def assert_consistent(stats):
    """Every counter follows from the others, as the contract has it."""
    generated, accepted, iterations = stats["generated_tokens"], stats["accepted_tokens"], stats["iterations"]
    assert generated == len(stats["token_ids"]) == 1 + accepted + iterations
    assert sum(stats["accepted_per_position"]) == accepted
    assert stats["accepted_per_position"] == sorted(stats["accepted_per_position"], reverse=True)
    assert stats["acceptance_rate"] == pytest.approx(accepted / max(stats["draft_depth"], 1))
    assert accepted <= stats["draft_depth"]
    assert 0 <= stats["ngram_accepted_tokens"] <= accepted
    assert stats["mean_accepted_length"] == pytest.approx(accepted / iterations + 1)
    assert stats["tokens_per_second"] == pytest.approx((generated - 1) / stats["decode_seconds"])
    assert sum(window["tokens"] for window in stats["latency"]) == generated - 1
    milliseconds = sum(window["tokens"] * window["ms_per_token"] for window in stats["latency"])
    assert milliseconds / 1e3 == pytest.approx(stats["decode_seconds"])
    assert stats["schedule_trace"][0]["from_token"] == 1
    for n in range(1, 5):
        grams = [tuple(stats["token_ids"][at : at + n]) for at in range(generated - n + 1)]
        assert stats["distinct_n"][str(n)] == pytest.approx(len(set(grams)) / len(grams))


def test_the_main_job_and_another_mode_from_standard_input(start, folder, tmp_path, demo):
    run = start(tmp_path, "--max-new-tokens", 48, "--stats", "stats.json", "--output", "text", "--audit")
    out, report = run.communicate()
    assert run.returncode == 0, report.decode()
    assert out == (tmp_path / "text").read_bytes() != b""
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert list(stats) == FIELDS
    assert_consistent(stats)
    assert stats["finish_reason"] == ("length" if stats["generated_tokens"] == 48 else "eos")
    assert stats["audit"] == {"positions": stats["generated_tokens"], "mismatches": 0, "max_margin": 0.0}
    assert (Path(stats["model"]), stats["mode"], stats["seed"], stats["sequence"]) == (folder, "auto", 0, 0)
    assert (stats["device"], stats["dtype"], set(stats["versions"])) == ("cpu", "float32", {"jax", "tokenswift_jax"})
    assert stats["prompt_tokens"] == len(demo.tokenizer(DEMO_PROMPT).input_ids)
    assert out.decode() == demo.tokenizer.decode(stats["token_ids"], skip_special_tokens=True)
    assert "audit passed" in report.decode().splitlines()[-1]

    words = ("--prompt-file", "-", "--max-new-tokens", 48, "--stats", "2.json", *FLAGS[:4], "--quiet")
    run = start(tmp_path, *words)
    again, report = run.communicate(DEMO_PROMPT.encode())
    assert (run.returncode, report.decode()) == (0, "")
    assert again == out
    other = json.loads((tmp_path / "2.json").read_text())
    assert other["token_ids"] == stats["token_ids"]
    assert (other["mode"], other["audit"]) == ("medusa", None)
    assert other["draft_depth"] > 0
    assert_consistent(other)


def test_a_killed_run_goes_on_to_the_same_text_in_another_mode(start, folder, tmp_path, capsys):
    """SIGKILL in the middle, the last record torn; the rest in another mode than the first part."""
    count, journal = 1500, tmp_path / "journal"
    same = ["--model", folder, "--prompt", PROMPT, "--max-new-tokens", count, "--capacity", CAPACITY, "--ignore-eos"]
    run = start(tmp_path, *same, "--quiet", "--mode", "autoregressive", "--journal", journal)
    deadline = time.monotonic() + 300
    while run.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL, "it should have been in the middle of the text"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 4
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    kept = [token for line in lines[1:-1] for token in json.loads(line)["token_ids"]]
    assert 0 < len(kept) < count

    words = [*map(str, same), *FLAGS[:4], "--quiet"]
    stats = tmp_path / "stats.json"
    assert main([*words, "--journal", str(journal), "--resume", "--stats", str(stats)]) == 0
    resumed = capsys.readouterr()
    assert main([*words, "--stats", str(tmp_path / "whole.json")]) == 0
    whole = capsys.readouterr()
    assert resumed == whole
    ids = json.loads((tmp_path / "whole.json").read_text())["token_ids"]
    found = json.loads(stats.read_text())
    assert found["token_ids"] == ids
    assert ids[: len(kept)] == kept
    assert_consistent(found)
    written = [token for line in journal.read_text().splitlines()[1:] for token in json.loads(line)["token_ids"]]
    assert written == ids


def test_a_stream_is_the_text_in_pieces(demo, reference):
    events = list(ts.stream(demo, PROMPT, None, DRAFTED, **LIMITS))
    assert len(events) > 3
    assert "".join(event.text for event in events) == reference.text
    assert [token for event in events for token in event.token_ids] == reference.token_ids
    flags = [flag for event in events for flag in event.drafted]
    assert len(flags) == COUNT
    assert sum(flags) >= reference.accepted_tokens > 0
    assert [event.result is None for event in events] == [True] * (len(events) - 1) + [False]
    assert replace(events[-1].result, **timeless(reference)) == reference
    assert reference.text == demo.tokenizer.decode(reference.token_ids, skip_special_tokens=True)


def timeless(result):
    """The fields that a clock gives."""
    names = ("compile_seconds", "prefill_seconds", "decode_seconds", "tokens_per_second", "latency")
    return {name: getattr(result, name) for name in names}


def test_a_batch_is_its_prompts_one_by_one(demo, sampling, reference):
    """Rows together in plain decoding, alone with drafts: one text each."""
    other = "At the edge of the wood"
    plain = ts.SpeculationConfig(mode="autoregressive")
    rows = ts.generate(demo, [PROMPT, other], None, plain, **LIMITS)
    alone = ts.generate(demo, other, replace(sampling, sequence=1), DRAFTED, **LIMITS)
    assert [row.token_ids for row in rows] == [reference.token_ids, alone.token_ids]
    assert [row.text for row in rows] == [reference.text, alone.text]
    assert [(row.sequence, row.prompt_tokens) for row in rows] == [
        (0, reference.prompt_tokens),
        (1, alone.prompt_tokens),
    ]


def command(folder, *words):
    return main(["--model", str(folder), "--max-new-tokens", str(COUNT), *FLAGS, *map(str, words)])


def test_a_prompt_of_ids(folder, demo, reference, tmp_path, capsys):
    ids = demo.tokenizer(PROMPT).input_ids
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    assert command(folder, "--prompt-ids", tmp_path / "ids.json") == 0
    assert capsys.readouterr() == (reference.text, "")


def test_a_stop_string_ends_the_text_before_it(folder, demo, reference, tmp_path, capsys):
    stop = reference.text[len(reference.text) // 2 :][:5]
    text = reference.text[: reference.text.find(stop)]
    words = ("--prompt", PROMPT, "--stop", stop, "--stop", "never written", "--audit")
    assert command(folder, *words, "--stats", tmp_path / "s", "--output", tmp_path / "o") == 0
    assert capsys.readouterr() == (text, "")
    assert (tmp_path / "o").read_bytes().decode() == text
    stats = json.loads((tmp_path / "s").read_text())
    assert stats["finish_reason"] == "stop"
    ids = stats["token_ids"]
    assert ids == reference.token_ids[: len(ids)], "ids run through the token that completes the string"
    assert stop in demo.tokenizer.decode(ids)
    assert stop not in demo.tokenizer.decode(ids[:-1])
    assert stats["audit"]["mismatches"] == 0
    assert_consistent(stats)


def test_chat_needs_a_template(folder, capsys, tmp_path):
    assert command(folder, "--prompt", "x", "--chat", "--output", tmp_path / "o") == 2
    out, report = capsys.readouterr()
    assert out == ""
    assert report == "error: this checkpoint's tokenizer has no chat template; give text without --chat\n"
    assert not (tmp_path / "o").exists()


def test_bos_comes_once_with_and_without_a_template(folder, tmp_path):
    """A tokenizer that puts BOS before every text, and a template that writes its own."""
    model = shutil.copytree(folder, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    name = settings["bos_token"]
    bos = tokenizer.token_to_id(name)
    bare = tokenizer.encode(PROMPT).ids
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, bos)])
    tokenizer.save(str(model / "tokenizer.json"))
    template = "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %} =>"
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))

    def prompt_ids(*words):
        journal = tmp_path / str(len(list(tmp_path.iterdir())))
        assert main(["--model", str(model), "--max-new-tokens", "1", *FLAGS, "--journal", str(journal), *words]) == 0
        return json.loads(journal.read_text().splitlines()[0])["prompt_ids"]

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [bos, *plain.encode(f"[user] {PROMPT} =>").ids]
    assert prompt_ids("--prompt", PROMPT, "--chat") == expected
    assert prompt_ids("--prompt", PROMPT) == [bos, *bare]
    assert prompt_ids("--prompt", name + PROMPT) == [bos, *bare]


def test_there_and_back_through_the_converters(folder, demo, tmp_path):
    """Exported, loaded by transformers, converted again: the same greedy tokens everywhere."""
    greedy = ts.generate(demo, PROMPT, GREEDY, DRAFTED, **LIMITS).token_ids
    export([str(folder), str(tmp_path / "out")])
    convert([str(tmp_path / "out"), str(tmp_path / "back")])
    back = ts.load(tmp_path / "back")
    assert back.config == demo.config
    assert back.generation_config == demo.generation_config
    assert ts.generate(back, PROMPT, GREEDY, DRAFTED, **LIMITS).token_ids == greedy
    try:
        import torch
    except ImportError:
        warnings.warn("torch is not installed: the export is NOT loaded in transformers here", stacklevel=1)
        pytest.skip("needs torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    # The checkpoint's own would sample; without an EOS it writes as many tokens.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    given = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(input_ids=given.input_ids, attention_mask=given.attention_mask, max_new_tokens=COUNT)
    assert np.asarray(theirs)[0, given.input_ids.shape[1] :].tolist() == greedy
