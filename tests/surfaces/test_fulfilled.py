"""Requests that cannot be fulfilled are refused, those that can are not, and messages are this program's own."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scripted import model, plain, play, prefilled
from tokenizers_made_here import END, byte_level, metaspace

import tokenswift_jax as ts
from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax import model as model_module
from tokenswift_jax.cli import flags
from tokenswift_jax.cli.commands import main as program
from tokenswift_jax.cli.generate import main
from tokenswift_jax.errors import TextWarning
from tokenswift_jax.generation_config import ends
from tokenswift_jax.models.hf_config import rope_override
from tokenswift_jax.prompt import read_ids
from tokenswift_jax.text.detokenizer import Detokenizer

IDS = byte_level()(" the cat and the dog").input_ids


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return model(tmp_path / "model", eos_token_ids=())


def test_a_special_token_as_a_stop_ends_the_text_though_it_gives_no_text(loaded, monkeypatch):
    play(monkeypatch, prefilled(IDS[0]), plain([*IDS[1:], 0, *IDS]))
    out = ts.generate(loaded, "x", max_new_tokens=50, stop=["zebra", END])
    assert (out.text, out.token_ids, out.finish_reason) == (" the cat and the dog", [*IDS, 0], "stop")
    by_file = replace(loaded, generation_config={"stop_strings": END})
    assert ts.generate(by_file, "x", max_new_tokens=50).token_ids == [*IDS, 0]
    assert ts.generate(by_file, "x", max_new_tokens=len(IDS) + 2, stop=()).finish_reason == "length"


def test_a_stop_with_a_special_token_inside_never_occurs(loaded):
    reported = f"the stop '\\n{END}' contains {END}, a special token, which gives no text; give that token alone"
    with pytest.raises(ts.UserError, match=re.escape(reported)):
        ts.generate(loaded, "x", max_new_tokens=5, stop="\n" + END)


@pytest.mark.parametrize(
    ("stop", "reported"),
    [
        ("a\udcff", "is not UTF-8 text, so no text contains it"),
        (5, "stop is 5; it must be a string or a list of strings"),
        (b"x", "stop is b'x'; it must be a string or a list"),
        ({"a": 1}, "it must be a string or a list of strings"),
        (["a", None], "text of at least one character"),
    ],
)
def test_a_stop_that_no_text_contains(loaded, stop, reported):
    with pytest.raises(ts.UserError, match=re.escape(reported)):
        ts.generate(loaded, "x", max_new_tokens=5, stop=stop)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ({"max_new_tokens": 4.0}, "max_new_tokens is 4.0; it must be a whole number, 1 or above"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"capacity": "4"}, "capacity is '4'; it must be a whole number, 1 or above"),
        ({"capacity": 1e5}, "capacity is 100000.0; it must be"),
        ({"audit": "no"}, "audit is 'no'; it must be True or False"),
        ({"resume": "no"}, "resume is 'no'; it must be True or False"),
        ({"ignore_eos": "no"}, "ignore_eos is 'no'; it must be True or False"),
        ({"journal": 3}, "journal is 3; it must be the name of a file"),
        ({"journal": ""}, "journal is ''; it must be the name of a file"),
        ({"speculation": "ngram"}, "speculation is 'ngram'; it must be a SpeculationConfig or None"),
        ({"sampling": {"top_k": 3}}, "sampling has a dict where a SamplingConfig is expected"),
        ({"model": "demo"}, "model is 'demo'; it must be a loaded checkpoint, such as load('demo')"),
    ],
)
def test_arguments_of_another_type(loaded, arguments, reported):
    call = {"model": loaded, "prompt": "x", "max_new_tokens": 5} | arguments
    with pytest.raises(ts.UserError, match=re.escape(reported)):
        ts.generate(**call)


@pytest.mark.parametrize("function", [ts.score, ts.score_tokens, ts.draft_logits])
def test_scoring_takes_a_loaded_checkpoint(function):
    with pytest.raises(ts.UserError, match=r"such as load\('demo'\)"):
        function("demo", [[1, 2]])


def test_numbers_of_numpy_are_numbers(loaded, monkeypatch):
    run = play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:4]))
    counts = {"max_new_tokens": np.int64(4), "min_new_tokens": np.int32(2), "ignore_eos": np.bool_(False)}
    assert ts.generate(loaded, "x", **counts, capacity=np.int64(64), journal="j").token_ids == IDS[:4]
    assert type(run.asked["max_new_tokens"]) is int


def test_suppressed_ids_of_a_generator_are_not_lost():
    assert ts.SamplingConfig(suppress_tokens=(token for token in [1, 2])).suppress_tokens == (1, 2)
    for wrong in (b"ab", {1: 2}):
        with pytest.raises(ts.UserError, match="must be a list of token ids"):
            ts.SamplingConfig(suppress_tokens=wrong)


@pytest.mark.parametrize(
    ("override", "unused", "kind"),
    [
        ({"factor": 4.0}, "factor", "default"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 16}, "beta_fast", "linear"),
        ({"rope_type": "yarn", "factor": 2.0, "low_freq_factor": 1.0}, "low_freq_factor", "yarn"),
    ],
)
def test_an_override_without_effect(override, unused, kind):
    with pytest.raises(ts.UserError, match=f"rope_override has {unused}, for which RoPE type '{kind}' has no use"):
        ts.load(FAMILIES / "llama2", rope_override=override)


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ("generate --temperature 1_0", "'1_0' is not a number"),
        ("generate --temperature ٣", "'٣' is not a number"),
        ("generate --top-k 1_0", "'1_0' is not a whole number of at least 0"),
        ("generate --suppress-tokens 1,,2", "'1,,2' is not a list of whole numbers such as 5,17"),
        ("generate --model=", "argument --model: the name is empty"),
        ("generate --prompt-file=", "argument --prompt-file: the name is empty"),
        ("generate --output=", "argument --output: the name is empty"),
        ("generate --prompt-file p --output ./p", "--output would replace the file of --prompt-file; name another"),
        ("generate --prompt-ids p --stats p", "--stats would replace the file of --prompt-ids; name another"),
        ("train --data x --output y --heads x", "argument --heads: 'x' is not a whole number"),
        ("train --data x --output y --max-length 1.5", "argument --max-length: '1.5' is not a whole number"),
        ("train --data x --output y --learning-rate fast", "argument --learning-rate: 'fast' is not a number"),
        ("train --data x --output= ", "argument --output: the name is empty"),
        ("evaluate --data x --json=", "argument --json: the name is empty"),
        ("convert hf model ", "argument DST: the name is empty"),
        ("convert hf  out", "the name of the checkpoint is empty"),
        ("convert export  out", "argument DIR: the name is empty"),
        ("generate --model ~nobody-here/x --prompt y", "no such directory: ~nobody-here/x"),
    ],
)
def test_words_that_are_no_value(tmp_path, monkeypatch, capsys, words, reported):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text("keep me")
    assert program(words.split(" ")) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert reported in shown.err
    assert (tmp_path / "p").read_text() == "keep me"


def test_words_that_begin_like_a_flag_stay_as_they_are():
    words = ["--prompt", "--max_new_tokens is a flag", "--stop", "--a_b c", "--stop=--a_b", "--max_new_tokens", "5"]
    options = flags.parse([*words, "--top_k=3"])
    assert (options.prompt, options.max_new_tokens, options.top_k) == ("--max_new_tokens is a flag", 5, 3)
    assert options.stop == ["--a_b c", "--a_b"]


def test_a_device_takes_all_outputs():
    flags.parse(["--output", "/dev/null", "--stats", "/dev/null"])


def test_ids_that_no_number_holds(tmp_path):
    (tmp_path / "ids").write_text(f"[{'1' * 5000}]")
    with pytest.raises(ts.UserError, match=r"ids is not JSON \(a number has too many digits\)"):
        read_ids(str(tmp_path / "ids"))


def test_an_override_of_null_keeps_the_type():
    with pytest.raises(ts.UserError, match="rope_override must be a JSON object"):
        rope_override({}, {"rope_type": None})
    llama3 = json.loads((FAMILIES / "llama3_1" / "config.json").read_text())
    changed = rope_override(llama3, {"rope_type": None, "factor": 4.0})
    assert changed == rope_override(llama3, {"factor": 4.0})


def test_a_stop_of_the_file_that_no_text_contains():
    with pytest.raises(ts.UserError, match=r"stop_strings has .* in generation_config\.json, which is not UTF-8 text"):
        ends({"stop_strings": ["\ud800"]})


def test_ids_from_standard_input(loaded, monkeypatch, capsys):
    import io
    from types import SimpleNamespace

    monkeypatch.setattr(model_module, "load", lambda *_, **__: loaded)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\xef\xbb\xbf[7, 8]")))
    run = play(monkeypatch, prefilled(5))
    assert main(["--prompt-ids", "-", "--max-new-tokens", "1", "--quiet"]) == 0
    assert run.asked["prompts"] == [[7, 8]]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        *(kind("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.") for kind in (RuntimeError, ValueError)),
    ],
)
def test_memory_that_runs_out_is_one_line(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(model_module, "load", fail)
    assert main(["--prompt", "x"]) == 1
    assert capsys.readouterr().err == (
        "error: memory ran out on the way; ask for fewer or shorter texts, or for less at once\n"
    )


def test_a_vocabulary_without_some_bytes_does_not_take_its_unknown_token_for_one_of_them():
    tokenizer = metaspace()

    class Lacking:
        unk_token_id = 300

        def convert_tokens_to_ids(self, names):
            return [300 if name == "<0xFF>" else tokenizer.convert_tokens_to_ids(name) for name in names]

        def decode(self, ids, **options):
            return "?" if ids == [300] else tokenizer.decode(ids, **options)

    assert Detokenizer(Lacking()).push(300) == "?"


def test_the_checkpoint_s_ends_count_unless_given(loaded, monkeypatch, capsys):
    file = {"min_new_tokens": 3, "max_new_tokens": 6, "stop_strings": ["dog"]}
    with_ends = replace(loaded, generation_config=file)
    run = play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    assert ts.generate(with_ends, "x", max_new_tokens=50).text == " the cat and the "
    assert run.asked["min_new_tokens"] == 3
    assert ts.generate(with_ends, "x", max_new_tokens=2).generated_tokens == 2
    assert run.asked["min_new_tokens"] == 2
    ts.generate(with_ends, "x", max_new_tokens=len(IDS), min_new_tokens=0, stop=[])
    assert run.asked["min_new_tokens"] == 0
    monkeypatch.setattr(model_module, "load", lambda *_, **__: with_ends)
    assert main(["--prompt", "x"]) == 0
    assert run.asked["max_new_tokens"] == 6
    reported = capsys.readouterr().err.splitlines()[-1]
    assert "max_new_tokens 6, min_new_tokens 3, stop_strings ['dog'] (generation_config.json)" in reported
    assert main(["--prompt", "x", "--max-new-tokens", "4", "--quiet"]) == 0
    assert run.asked["max_new_tokens"] == 4


@pytest.mark.parametrize(
    ("file", "expected", "shown"),
    [
        ({"max_length": 20}, 20 - len("abc"), "max_length 20 (generation_config.json)"),
        ({"max_length": 20, "max_new_tokens": 6}, 6, "max_new_tokens 6 (generation_config.json)"),
        ({"max_new_tokens": 10**6}, None, "max_new_tokens 1000000 (generation_config.json)"),
        ({"max_length": 10**6}, None, "max_length 1000000 (generation_config.json)"),
    ],
)
def test_the_checkpoint_s_length_counts_unless_given(loaded, monkeypatch, capsys, file, expected, shown):
    """`max_length` is transformers' limit for prompt and text together; what cannot fit is no more than fits."""
    with_length = replace(loaded, generation_config=file | {"stop_strings": ["dog"]})
    fits = loaded.config.max_position_embeddings - 3
    run = play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    ts.stream(with_length, [1, 2, 3], max_new_tokens=None)
    assert run.asked["max_new_tokens"] == (expected or fits)
    monkeypatch.setattr(model_module, "load", lambda *_, **__: with_length)
    monkeypatch.setattr("tokenswift_jax.prompt.read_ids", lambda path: [1, 2, 3])
    assert main(["--prompt-ids", "x"]) == 0
    assert run.asked["max_new_tokens"] == (expected or fits)
    assert shown in capsys.readouterr().err.splitlines()[-1].replace(", stop_strings ['dog']", "")
    assert main(["--prompt-ids", "x", "--max-new-tokens", "4", "--quiet"]) == 0
    assert run.asked["max_new_tokens"] == 4


def test_a_length_that_the_prompt_has_already_is_named_and_left_out(loaded, monkeypatch):
    run = play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    with pytest.warns(TextWarning, match=r"max_length 3 of generation_config.json has no effect: the prompt alone"):
        ts.stream(replace(loaded, generation_config={"max_length": 3}), [1, 2, 3], max_new_tokens=None)
    assert run.asked["max_new_tokens"] == 256


def test_the_tokenizer_s_eos_ends_a_text_beside_the_file_s(tmp_path):
    folder = shutil.copytree(FAMILIES / "llama2", tmp_path / "m")
    byte_level().save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert ts.load(folder).eos_token_ids == (7, 8, 0)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert ts.load(folder).eos_token_ids == (0,)
