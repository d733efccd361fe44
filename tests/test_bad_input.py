"""Section 7 through the command and the real loader: one line on stderr, status 2, nothing on stdout, no files.

What the flags alone can get wrong is in surfaces/test_cli_errors.py, over a scripted run; here the checkpoints,
prompts and sizes are real.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax import model as model_module
from tokenswift_jax.cli import phases
from tokenswift_jax.cli.generate import main
from tokenswift_jax.model import DEMO_MODEL

BILLION = 10**9
DEMO = json.loads((DEMO_MODEL / "config.json").read_text())
VOCAB, POSITIONS, LAYERS = DEMO["vocab_size"], DEMO["max_position_embeddings"], DEMO["num_hidden_layers"]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """A slow machine says every ten seconds what it loads; those lines are not the error's."""
    monkeypatch.setattr(phases, "_SECONDS_BETWEEN_LINES", float("inf"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return shutil.copytree(DEMO_MODEL, tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture
def scene(demo, tmp_path, monkeypatch):
    """A copy of the demo to spoil, as `model`, in the working folder; the other files are links."""
    work = tmp_path / "work"
    (work / "model").mkdir(parents=True)
    for file in demo.iterdir():
        (work / "model" / file.name).symlink_to(file)
    monkeypatch.chdir(work)
    return work / "model"


def replaced(file, data):
    """Puts a file in place of a link."""
    file.unlink(missing_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())


def config(**fields):
    def spoil(folder):
        known = json.loads((folder / "config.json").read_text())
        replaced(folder / "config.json", json.dumps(known | fields))

    return spoil


def tensors(file, change):
    """Rewrites a safetensors file of the model, its tensors changed."""

    def spoil(folder):
        values = load_file(folder / file)
        change(values)
        (folder / file).unlink()
        save_file(values, folder / file)

    return spoil


def cut(file):
    def spoil(folder):
        replaced(folder / file, (folder / file).read_bytes()[:-1000])

    return spoil


def longer_tokenizer(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["one too many"])
    replaced(folder / "tokenizer.json", tokenizer.to_str())


def other_heads(values):
    for name, old in values.items():
        values[name] = np.ones([48] * old.ndim, np.float32)


def only(**fields):
    """The content of another JSON file in the model's folder."""

    def spoil(folder):
        for name, value in fields.items():
            file = folder / f"{name}.json"
            known = json.loads(file.read_text())
            replaced(file, json.dumps(known | value))

    return spoil


def drop(name):
    return lambda values: values.pop(name)


def add(name, *shape):
    return lambda values: values.update({name: np.ones(shape, np.float32)})


UP = "model.layers.1.mlp.up_proj.weight"
MODEL, HEADS = "model.safetensors", "heads.safetensors"
# what is done to the demo -> what the one line has to name
CHECKPOINTS = {
    "unknown architecture": (config(model_type="gpt2"), ["'gpt2'", "llama, mistral, qwen2, qwen3"]),
    "no architecture": (config(model_type=None), ["model_type", "llama, mistral, qwen2, qwen3"]),
    "unknown rope": (
        config(rope_scaling={"rope_type": "su", "factor": 2.0}),
        ["'su'", "default, linear, llama3, yarn"],
    ),
    "dynamic rope": (
        config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        ["'dynamic'", "chunked", "default, linear, llama3, yarn", "--rope-override"],
    ),
    "rope without its factor": (config(rope_scaling={"rope_type": "yarn"}), ["'yarn' needs factor"]),
    "quantised": (config(quantization_config={"bits": 4}), ["quantization_config"]),
    "impossible heads": (config(num_attention_heads=5), ["5", "num_key_value_heads"]),
    "unknown head type": (config(tokenswift={"num_heads": 3, "head_type": "eagle"}), ["'eagle'", "chained"]),
    "missing tensor": (tensors(MODEL, drop(UP)), [f"missing: {UP}"]),
    "extra tensor": (tensors(MODEL, add("model.layers.0.adapter.weight", 2)), ["extra: model.layers.0.adapter.weight"]),
    "mis-shaped tensor": (tensors(MODEL, add(UP, 3, 5)), [f"mis-shaped: {UP} [3, 5] instead of ["]),
    "more layers than weights": (
        config(num_hidden_layers=LAYERS + 2),
        [f"missing: model.layers.{LAYERS}.", "and 10 more"],
    ),
    "another vocabulary": (config(vocab_size=5000), ["model.embed_tokens.weight", "instead of [5000, "]),
    "heads for another hidden size": (tensors(HEADS, other_heads), ["another hidden size", "[48, 48]"]),
    "a head too few": (
        tensors(HEADS, lambda values: [values.pop(name) for name in list(values) if ".2." in name]),
        ["missing: medusa_layers.2."],
    ),
    "heads nobody announced": (config(tokenswift=None), ["extra: medusa_layers.0", "config.json names 0 draft heads"]),
    "a field that is not known": (config(sparse_attention_config={"k": 9}), ["sparse_attention_config {'k': 9}"]),
    "a flag that is text": (config(tie_word_embeddings="false"), ["tie_word_embeddings", "true or false"]),
    "a broken tokenizer": (lambda folder: replaced(folder / "tokenizer.json", "{"), ["tokenizer", "cannot be loaded"]),
    "eos that is no id": (only(generation_config={"eos_token_id": "</s>"}), ["eos_token_id is '</s>'", "a token id"]),
    "unsupported generation": (only(generation_config={"num_beams": 4}), ["num_beams 4", "not supported"]),
    "do_sample of text": (only(generation_config={"do_sample": "false"}), ["do_sample is 'false'", "true or false"]),
    "no tokens to generate": (only(generation_config={"max_new_tokens": 0}), ["max_new_tokens is 0", "1 or above"]),
    "sampling out of range": (only(generation_config={"top_p": 3}), ["top_p is 3"]),
    "truncated model": (cut(MODEL), [MODEL, "truncated?"]),
    "truncated heads": (cut(HEADS), [HEADS, "truncated?"]),
    "weights that are something else": (lambda folder: replaced(folder / MODEL, b"PK\3\4" * 99), [MODEL, "readable"]),
    "no weights": (lambda folder: (folder / MODEL).unlink(), ["no weights", MODEL]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "config that is not JSON": (lambda folder: replaced(folder / "config.json", "{,"), ["config.json is not JSON"]),
}
# flags, with the demo as it is -> what the one line has to name
REQUESTS = {
    "more tokens than positions": (
        f"--max-new-tokens {POSITIONS}",
        [f"{POSITIONS} positions", "--rope-override", "yarn"],
    ),
    "a prompt longer than the positions": (
        "--prompt-ids long.json",
        [f"prompt ({POSITIONS} tokens)", "--rope-override"],
    ),
    "a prompt longer than the capacity": (
        "--prompt-ids short.json --capacity 256",
        ["--capacity 256 is too small", "needs"],
    ),
    "more tokens than the capacity": ("--max-new-tokens 300 --capacity 256", ["--capacity 256 is too small", "needs"]),
    "stretched, but not enough": (
        f'--max-new-tokens {2 * POSITIONS} --rope-override {{"rope_type":"yarn","factor":2.0}}',
        [f"{2 * POSITIONS} positions", "--rope-override"],
    ),
    "an override of no type": ('--rope-override {"rope_type":"su"}', ["'su'", "default, linear, llama3, yarn"]),
    "an override without a factor": ('--rope-override {"rope_type":"linear"}', ["'linear' needs factor"]),
    "an empty override": ("--rope-override {}", ["--rope-override must be", '"factor": 4.0']),
    "a negative factor": ('--rope-override {"rope_type":"linear","factor":-1}', ["factor is -1", "positive"]),
    "an empty prompt": ("--prompt-ids none.json", ["the prompt is empty"]),
    "ids outside the vocabulary": ("--prompt-ids outside.json", [f"token id {VOCAB} ", f"0..{VOCAB - 1}"]),
    "a negative id": ("--prompt-ids negative.json", ["token id -1", f"0..{VOCAB - 1}"]),
    "suppressed ids outside": (f"--suppress-tokens {VOCAB}", [f"[{VOCAB}]", f"{VOCAB - 1}"]),
    "an unknown dtype": ("--dtype int8", ["unknown --dtype 'int8'", "bfloat16, float16, float32"]),
    "float64 without x64": ("--dtype float64", ["JAX_ENABLE_X64"]),
    "a tree too shallow for the heads": (
        "--mode tokenswift --tree 1,3",
        ["--tree 1,3 has 2 depths", "3 draft heads need 4"],
    ),
    "a tree too wide": ("--mode medusa --tree 1,9999,3,3", ["--tree 1,9999,3,3 asks", f"{VOCAB}"]),
    "no such model": ("--model nowhere --prompt x", ["no such directory: nowhere", "owner/name"]),
    "a file for a model": ("--model short.json --prompt x", ["is a file", "config.json"]),
    "an infinite temperature": ("--temperature inf", ["--temperature is inf"]),
    "a hot temperature": ("--temperature 1e9", ["temperature", "1e6"]),
    "a negative eta": ("--eta-cutoff -0.1", ["--eta-cutoff is -0.1"]),
    "a top-p below 0": ("--top-p -1", ["--top-p is -1.0"]),
    "a min-p above 1": ("--min-p 1.5", ["--min-p is 1.5"]),
    "a penalty that is no number": ("--repetition-penalty nan", ["--repetition-penalty is nan"]),
    "a negative penalty": ("--repetition-penalty -2", ["--repetition-penalty is -2.0"]),
    "a top-k beyond int32": ("--top-k 2147483648", ["--top-k is 2147483648"]),
    "a window beyond int32": ("--penalty-window 2147483648", ["--penalty-window is 2147483648"]),
    "too many to keep": ("--min-tokens-to-keep 2147483648", ["--min-tokens-to-keep is 2147483648"]),
    "n-grams below 0": ("--ngram-k -1", ["--ngram-k"]),
    "no n-gram slots": ("--ngram-slots 0", ["--ngram-slots"]),
    "no draft cache": ("--draft-cache 0", ["--draft-cache"]),
    "sinks below 0": ("--draft-sinks -1", ["--draft-sinks"]),
    "sinks that fill the draft cache": ("--draft-cache 64 --draft-sinks 60", ["--draft-cache is 64", "at least 76"]),
    "blocks of another size": ("--draft-block 48", ["--draft-block is 48", "16, 32, 64, 128, 256"]),
    "blocks that do not fill it": ("--draft-cache 200 --draft-block 64", ["--draft-cache is 200", "192 or another"]),
    "too few blocks": ("--draft-cache 128 --draft-block 64", ["--draft-cache is 128", "must be 192 or"]),
    "a refresh every 0 tokens": ("--refresh-interval 0", ["--refresh-interval"]),
    "a number of 5,000 digits": (f"--seed {'1' * 5000}", ["--seed", "111... has 5000 digits"]),
    "a tree of such numbers": (f"--tree 1,{'3' * 5000}", ["--tree", "333... has 5000 digits"]),
    "a mesh of such a size": (f"--mesh model={'2' * 5000}", ["--mesh model=222", "data=2,model=4"]),
    "a budget that is no number": ("--node-budget many", ["'many'"]),
    "a window of 1.5": ("--penalty-window 1.5", ["'1.5' is not a whole number"]),
    "a stop without text": ("--stop=", ["--stop"]),
    "ids that are text": ("--prompt-ids model/tokenizer_config.json", ["one list of token ids"]),
    "a prompt that is not text": ("--prompt-file model/model.safetensors", ["not", "text"]),
}


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def assert_refused(words, named, folder, capsys):
    before = contents(folder)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1, shown.err
    assert [part for part in named if part not in shown.err] == [], shown.err
    assert contents(folder) == before


FILES = ["--output", "o", "--stats", "s", "--journal", "j"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_spoiled_checkpoint(scene, capsys, name):
    spoil, named = CHECKPOINTS[name]
    spoil(scene)
    assert_refused(["--model", "model", "--prompt", "x", *FILES], named, Path(), capsys)


def test_a_tokenizer_with_more_entries_than_the_model_is_refused_where_one_of_them_occurs(scene, capsys):
    longer_tokenizer(scene)
    words = ["--model", "model", "--max-new-tokens", "1", "--mode", "autoregressive"]
    assert main([*words, "--prompt", "x", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    named = [f"token id {VOCAB} of the prompt is outside the vocabulary of 0..{VOCAB - 1}"]
    assert_refused([*words, "--prompt", "here is one too many", *FILES], named, Path(), capsys)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_does_not_fit(scene, capsys, monkeypatch, name):
    for file, ids in {
        "long": [1] * POSITIONS,
        "short": [1] * 300,
        "none": [],
        "outside": [VOCAB],
        "negative": [-1],
    }.items():
        Path(f"{file}.json").write_text(json.dumps(ids))
    arguments, named = REQUESTS[name]
    monkeypatch.setattr(model_module, "DEMO_MODEL", scene)
    assert_refused([*arguments.split(), *FILES], named, Path(), capsys)


@pytest.mark.parametrize(
    ("flags", "positions", "size"),
    [
        (["--capacity", str(BILLION)], BILLION, 4),
        (["--max-new-tokens", str(BILLION // 2)], BILLION // 2, 4),
        (["--capacity", str(BILLION), "--dtype", "bfloat16"], BILLION, 2),
        (["--mode", "selfspec", "--draft-cache", str(BILLION)], BILLION, 4),
    ],
)
def test_too_little_memory_for_the_cache(scene, capsys, flags, positions, size):
    """Said before anything of that size is asked for: these would take terabytes."""
    config(max_position_embeddings=2 * BILLION)(scene)
    before = contents(Path())
    assert main(["--model", "model", "--prompt", "x", *flags, *FILES]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    gigabytes = 2 * LAYERS * DEMO["num_key_value_heads"] * DEMO["head_dim"] * size * positions / 1e9
    needed = float(shown.err.split(" GB")[0].split()[-1])
    assert gigabytes <= needed <= 1.13 * gigabytes  # capacities are rounded up by at most an eighth
    assert "GB are free" in shown.err
    assert contents(Path()) == before


def test_too_little_memory_for_the_ngram_table(scene, capsys):
    slots = str(1000 * BILLION)
    assert main(["--model", "model", "--prompt", "x", "--mode", "ngram", "--ngram-slots", slots, *FILES]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert "GB are free" in shown.err
    assert "--ngram-slots" in shown.err


def test_not_a_number_in_the_middle_stops_with_the_position(tmp_path, monkeypatch, capsys):
    """The embedding of a token that comes up after a while is not a number: what was emitted before stands."""
    folder = shutil.copytree(FAMILIES / "llama2", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    prompt = [3, 1, 4, 1, 5]
    Path("p.json").write_text(json.dumps(prompt))
    words = ["--model", "model", "--prompt-ids", "p.json", "--mode", "ngram", "--node-budget", "3", "--quiet"]
    words += ["--max-new-tokens", "60", "--seed", "1"]
    assert main([*words, "--stats", "whole"]) == 0
    ids = json.loads(Path("whole").read_text())["token_ids"]
    at = next(index for index in range(40, 60) if ids[index] not in ids[:index] + prompt)
    values = load_file(folder / MODEL)
    values["model.embed_tokens.weight"][ids[at]] = np.nan
    save_file(values, folder / MODEL)
    capsys.readouterr()
    assert main([*words, "--stats", "s", "--journal", "j", "--output", "o"]) == 2
    shown = capsys.readouterr()
    # That token itself could still be drawn; the one after it could not.
    position = len(prompt) + at + 1
    assert len(shown.err.splitlines()) == 1
    assert f"the logits of position {position} are not numbers" in shown.err
    kept = [token for line in Path("j").read_text().splitlines()[1:] for token in json.loads(line)["token_ids"]]
    assert kept == ids[: at + 1]
    assert shown.out == Path("o").read_text() == "".join(f"{token} " for token in kept)
    assert not Path("s").exists()
    assert main([*words, "--journal", "j", "--resume"]) == 2, "the journal is intact, and so is the model's fault"
    assert f"position {position}" in capsys.readouterr().err
