"""The package's face: lazy, and `generate` stays the function after any import."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tokenswift_jax as ts

ROOT = Path(__file__).parents[2]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_importing_the_command_leaves_the_function():
    import tokenswift_jax.generate as command
    from tokenswift_jax.api import generate

    assert "tokenswift_jax.generate" in sys.modules
    assert command is generate
    assert ts.generate is generate


@pytest.mark.parametrize(
    "first", ["import tokenswift_jax.generate", "ts.generate", "from tokenswift_jax import generate"]
)
def test_the_function_in_a_fresh_process_after_any_import(first):
    program = f"import tokenswift_jax as ts; {first}; import tokenswift_jax.generate; print(ts.generate.__module__)"
    done = python("-W", "error", "-c", program)
    assert (done.stdout, done.stderr) == ("tokenswift_jax.api\n", "")


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'jax', 'numpy', 'flax', 'transformers', 'rich'}"
    done = python(
        "-c", f"import sys, tokenswift_jax.cli.flags, tokenswift_jax.cli.generate; print({heavy} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr


def test_the_names_are_listed_and_others_are_unknown():
    assert set(ts.__all__) <= set(dir(ts))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ts.nothing  # noqa: B018


def test_the_version_is_the_project_s():
    assert ts.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_dependency_has_a_floor_that_the_tests_pass_with():
    """They pass with what is installed here, so no floor is above it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["train"], *extras["prefill"], *extras["test"]]
    for entry in named:
        wanted = Requirement(entry)
        if wanted.name == project["name"]:
            continue
        assert ">=" in str(wanted.specifier), f"{entry} has no floor"
        assert version(wanted.name) in wanted.specifier, f"{entry} is not what is installed"


def test_running_the_command_as_a_module():
    done = python("-m", "tokenswift_jax.generate", "--top-k", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--top-k" in done.stderr
    shown = python("-m", "tokenswift_jax.generate", "--help")
    assert shown.returncode == 0
    assert "--show-acceptance" in shown.stdout


def test_files_have_at_most_400_lines():
    folders = ("tokenswift_jax", "pallas_kernels", "convert", "scripts")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    long = {file.name for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 400}
    assert not long
