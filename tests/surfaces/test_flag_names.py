"""Errors name Python arguments; a command puts its flags in their place."""

import argparse
import ast
import json
import re
from pathlib import Path

import pytest
from scripted import model, play, prefilled

import tokenswift_jax as ts
from tokenswift_jax import model as model_module
from tokenswift_jax.cli.command import Parser, in_flags
from tokenswift_jax.cli.generate import main
from tokenswift_jax.errors import UserError, read_from
from tokenswift_jax.sampling import resolve_sampling
from tokenswift_jax.training.cli import main as train
from tokenswift_jax.training.settings import TrainingSettings, read_settings

ROOT = Path(__file__).parents[2]
COMMANDS = {"tokenswift_jax/evaluate.py", "tokenswift_jax/training/cli.py"}  # the others are in cli/ or have no errors
LIBRARY = [
    path
    for package in ("tokenswift_jax", "pallas_kernels", "convert")
    for path in sorted((ROOT / package).rglob("*.py"))
    if str(path.relative_to(ROOT)) not in COMMANDS and "cli" not in path.relative_to(ROOT).parts
]
FLAGS = {"top_p": "--top-p", "journal": "--journal", "resume": "--resume", "rope_override": "--rope-override"}


@pytest.mark.parametrize(
    ("message", "arguments", "line"),
    [
        ("top_p is 2", ("top_p",), "--top-p is 2"),
        ("top_p is 2", (), "top_p is 2"),
        ("top_k is 2", ("top_k",), "top_k is 2"),  # another command's
        ("my_top_p and top_p_x, not top_p", ("top_p",), "my_top_p and top_p_x, not --top-p"),
        ("journal journal exists", ("journal",), "--journal journal exists"),
        ("top_p below top_p", ("top_p", "top_p"), "--top-p below --top-p"),
        ("go on with resume=True,\nor not", ("resume",), "go on with --resume, or not"),
        ('give rope_override={"factor": 2} now', ("rope_override",), "give --rope-override '{\"factor\": 2}' now"),
    ],
)
def test_a_flag_replaces_each_argument_that_an_error_names(message, arguments, line):
    assert in_flags(UserError(message, arguments=arguments), FLAGS) == line


def test_a_parser_knows_its_flags_by_their_arguments():
    parser = Parser(prog="x")
    parser.add_argument("positional")
    parser.add_argument("-t", "--top-p")
    parser.add_argument("--no-shared-noise", dest="shared_noise", action=argparse.BooleanOptionalAction)
    assert parser.flags["top_p"] == "--top-p"
    assert "positional" not in parser.flags


DOORS = [  # Python arguments, flags, and the line of each door
    (
        {"max_new_tokens": 5000},
        "--max-new-tokens 5000",
        "max_new_tokens (5000) exceeds",
        "--max-new-tokens (5000) exceeds",
    ),
    ({"capacity": 8}, "--capacity 8", "capacity 8 is too small", "--capacity 8 is too small"),
    ({"journal": "old"}, "--journal old", "with resume=True or name", "with --resume or name"),
    ({"journal": "no/j"}, "--journal no/j", "journal no/j: there is no folder", "--journal no/j: there is no folder"),
    ({"stop": "x", "tokenizer": None}, "--stop x", "stop needs text", "--stop needs text"),
    (
        {"messages": [{"role": "user", "content": "x"}]},
        "--prompt x --chat",
        "no chat template; give text without messages",
        "no chat template; give text without --chat",
    ),
]


@pytest.mark.parametrize(("arguments", "flags", "message", "printed"), DOORS, ids=[flags for _, flags, *_ in DOORS])
def test_one_error_through_both_doors(tmp_path, monkeypatch, capsys, arguments, flags, message, printed):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("")
    Path("p.json").write_text("[1, 2]")
    tokenizer = {"tokenizer": arguments.pop("tokenizer")} if "tokenizer" in arguments else {}
    loaded = model(tmp_path / "model", **tokenizer)
    if not {"max_new_tokens", "capacity"} & set(arguments):
        play(monkeypatch, prefilled(5))
    given = {"max_new_tokens": 4, **({} if "messages" in arguments else {"prompt": [1, 2]}), **arguments}
    with pytest.raises(ts.UserError) as caught:
        ts.generate(loaded, **given)
    assert message in str(caught.value)
    assert not re.search(r"(?<![\w-])--[a-z]", str(caught.value))
    monkeypatch.setattr(model_module, "load", lambda *_, **__: loaded)
    prompt = [] if "messages" in arguments else ["--prompt-ids", "p.json"]
    assert main([*prompt, *flags.split()]) == 2
    assert printed in capsys.readouterr().err


def test_a_value_of_the_checkpoint_s_is_not_called_a_flag():
    with pytest.raises(UserError, match=r"^generation_config\.json: top_p is 3") as caught:
        resolve_sampling({"seed": 1}, {"top_p": 3})
    assert in_flags(caught.value, FLAGS) == str(caught.value)
    with pytest.raises(UserError, match=r"^top_p is 4"):
        resolve_sampling({"top_p": 4}, {"top_p": 3})


def test_a_setting_of_a_file_is_not_called_a_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps({"heads": 0}))
    needed = ["--data", "x", "--output", "y"]
    assert train([*needed, "--config", "c.json"]) == 2
    assert capsys.readouterr().err == "error: c.json: heads is 0; it must be a whole number of at least 1\n"
    assert train([*needed, "--config", "c.json", "--heads", "-1"]) == 2
    assert capsys.readouterr().err == "error: --heads is -1; it must be a whole number of at least 1\n"
    assert train([*needed, "--max-length", "8", "--heads", "9"]) == 2
    assert capsys.readouterr().err == "error: --max-length 8 is too short for 9 heads: at least 11\n"
    assert read_settings(None, {"heads": 2}) == TrainingSettings(heads=2)


def test_read_from_leaves_other_errors_alone():
    with pytest.raises(KeyError), read_from("file", {"a"}):
        raise KeyError


def errors(path):
    """Each UserError that a file makes, as (line, the constant text of its message, the arguments it names)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "UserError":
            parts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            text = " {} ".join(part for part in parts if isinstance(part, str))
            named = [keyword.value for keyword in node.keywords if keyword.arg == "arguments"]
            literal = [entry.value for tree in named for entry in ast.walk(tree) if isinstance(entry, ast.Constant)]
            yield node.lineno, text, [name for name in literal if isinstance(name, str)]


def test_no_library_error_speaks_of_flags():
    assert sum(1 for path in LIBRARY for _ in errors(path)) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in LIBRARY
        for line, text, _ in errors(path)
        if re.search(r"(?<![\w-])--[a-z]", text)
    ]
    assert not found


def test_the_arguments_that_errors_declare_are_in_their_messages():
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in LIBRARY
        for line, text, names in errors(path)
        for name in names
        if len(re.findall(rf"(?<!\w){name}(?!\w)", text)) < names.count(name)
    ]
    assert not missing
