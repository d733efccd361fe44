"""The pages: their figures are their sources', their files, flags, extras and names exist."""

import ast
import dataclasses
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tokenswift_jax as ts
from tokenswift_jax.cli.flags import parse
from tokenswift_jax.evaluate import main as evaluate_command
from tokenswift_jax.training.cli import main as train_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # as python scripts/readme_table.py does

import readme_table  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


def row(section, contender, **fields):
    speeds = {"tokens_per_second": {"median": 1234.4}, "tokens_per_iteration": {"median": 1.0}}
    own = {"implementation": "tokenswift_jax", "mode": contender, "compile_seconds_excluded": 7.0}
    machine = {"model": "the bundled demo", "dtype": "float32", "cpu": "a processor", "cores": 2, "device": "cpu"}
    run = {"versions": {"jax": "0.10.2"}, "date": "2026-11-22T12:00:00+00:00", "load_average_at_start": [0.5, 0.4, 0.3]}
    setting = {"section": section, "contender": contender, "prefix": 1024, "temperature": 0.0, "new_tokens": 512}
    return {
        "quick": False,
        "runs": 3,
        "prompt": {"source": "books"},
        **machine,
        **run,
        **setting,
        **own,
        **speeds,
        **fields,
    }


def test_the_readme_s_figures_are_those_of_the_files():
    command = [sys.executable, str(ROOT / "scripts" / "readme_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_medians_are_under_their_contender():
    rows = [
        row("speed", "transformers", implementation="transformers", tokens_per_second={"median": 500.2}),
        row("speed", "autoregressive", speed_vs_transformers={"median": 2.468}),
        row("speed", "ngram", tokens_per_second={"median": 1.0}, speed_vs_autoregressive={"median": 9.0}),
        row("speed", "autoregressive", prefix=8192, speed_vs_transformers={"median": 1.5}),
        row(
            "speed",
            "ngram",
            tokens_per_second={"median": 1604.6},
            speed_vs_autoregressive={"median": 1.3},
            leading_tokens_equal_to_autoregressive=512,
        ),
        row("speed", "auto", quick=True, tokens_per_second={"median": 9e9}),
    ]
    lines = readme_table.benchmark_section(rows).splitlines()
    assert lines[0] == "| prompt | temperature | transformers | `autoregressive` | `ngram` |"
    assert lines[2] == "| 1,024 | 0 | 500 | 1,234 (2.47x) | 1,605 (1.30x) |"
    assert lines[3] == "| 8,192 | 0 |  | 1,234 (1.50x) |  |"
    assert "* Every text in these runs is `autoregressive`'s token for token (1 settings)." in lines
    rows.append(
        row("auto-long", "auto", text="greedy", wall_speed_vs_autoregressive={"median": 0.984}, new_tokens=2048)
    )
    rows.append(row("capacity", "autoregressive", capacity=131072, time_vs_capacity_4096={"median": 1.03}))
    rows.append(row("host", "ngram", host_share={"median": 0.034}, leading_tokens_equal_to_autoregressive=3))
    text = readme_table.benchmark_section(rows)
    assert "`auto` over 2,048 tokens, trials included, greedy text (temperature 0): 0.98x `autoregressive`." in text
    assert "capacity 131,072 with 1,536 positions in use takes 1.03 times the time of capacity 4,096." in text
    assert "by profiling: 3.4% (`ngram`)." in text
    assert "1 of 2 settings gave a text that is NOT `autoregressive`'s." in text
    assert readme_table.benchmark_section([]) == readme_table.NOT_MEASURED


def test_the_demo_section_states_training_length_and_bits():
    training = json.loads((readme_table.DEMO / "training.json").read_text())
    config = json.loads((readme_table.DEMO / "config.json").read_text())
    training["in_all"] = {"backbone_tokens": 3_000_000, "head_tokens": 250_000, "minutes": 7.4}
    training["in_all"] |= {"shortest": 256, "longest": 1024}
    text = readme_table.demo_section(training, config, "")
    assert "on 3.0 million tokens of public-domain prose, the heads on 0.2 million more, in 7 minutes" in text
    assert "Training length: 256 to 1,024 tokens" in text
    assert "bits per character" not in text
    training["in_all"]["minutes"] = None
    assert "0.2 million more (" in readme_table.demo_section(training, config, "")
    card = "| book | unwrapped | hard-wrapped |\n| tess | 1.8 | 1.9 |\n| all | 1.987 | 2.1 |\n"
    assert "**1.99 bits per character** (2.10 with" in readme_table.demo_section(training, config, card)


def test_filling_needs_the_marks_once():
    assert readme_table.fill("a <!-- x:begin -->old<!-- x:end --> b", "x", "new", "f") == (
        "a <!-- x:begin f -->\nnew\n<!-- x:end --> b"
    )
    with pytest.raises(ValueError, match="x:begin"):
        readme_table.fill("nothing", "x", "new")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_pages_name_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert all((ROOT / page).parent.joinpath(link).exists() for link in linked), linked
    named = re.findall(r"`(?:python )?((?:[\w.]+/)+[\w.]*)", text)
    places = (ROOT, ROOT / "tokenswift_jax")
    named = [name for name in named if not name.split("/")[0].isupper()]  # OUTPUT/.. is a place of the reader's
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing


def test_the_extras_of_the_readme_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"pip install -e '?\.\[(\w+)\]|'\.\[(\w+)\]'", README)
    assert {name for pair in extras for name in pair if name} == {
        *("test", "train", "serve", "cpu", "cuda12", "cuda13", "tpu", "gguf", "smollm2", "harness")
    }
    assert {name for pair in extras for name in pair if name} <= set(project["optional-dependencies"])


def test_every_flag_of_the_readme_is_known(capsys):
    known = {"--no-deps"}  # pip's
    for command in (parse, train_command, evaluate_command):
        with pytest.raises(SystemExit):
            command(["--help"])
        known |= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    others = ("convert.", "scripts/", "_jax.harness")  # commands with flags of their own
    text = "\n".join(line for line in README.splitlines() if not any(other in line for other in others))
    assert {flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text) if flag != "--help"} <= known
    commands = re.findall(r"^python -m tokenswift_jax.generate (.+)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        options = parse(shlex.split(command))
        assert ("--max-new-tokens" not in command) or options.max_new_tokens == 4096


def test_the_python_of_the_readme_fits_the_interface():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    fields = {field.name for field in dataclasses.fields(ts.GenerationResult)} | set(dir(ts.GenerationResult))
    calls = {}
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            calls[node.func.attr] = node
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "out":
            assert node.attr in fields
    for name, node in calls.items():
        inspect.signature(getattr(ts, name)).bind(*node.args, **{keyword.arg: None for keyword in node.keywords})
    assert set(calls) == {"load", "SamplingConfig", "SpeculationConfig", "generate"}
