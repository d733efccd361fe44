"""The benchmark and the programs that draw or tabulate its rows use the package as a person does: its public names.

Checks of hardware (aot_report, first_contact, cpu_step) and programs that make checkpoints are tools of the library:
they may import `tokenswift_jax.hardware` and what else they check. All programs share the frame of the package's
commands.
"""

import ast
from pathlib import Path

import pytest

import tokenswift_jax as ts

# The frame of a command, which measures nothing: flags, files, exit statuses, tables in pages.
FRAME = {
    f"tokenswift_jax.{name}"
    for name in (
        *("cli.command.exit_status", "cli.converters.number", "cli.converters.whole_list", "prompt.read_text"),
        *("hardware.environment.load_average", "hardware.page.fill", "hardware.page.table", "paths.check_writable"),
    )
}
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PUBLIC_ONLY = [
    *sorted((SCRIPTS / "benchmarking").glob("*.py")),
    *(SCRIPTS / f"{name}.py" for name in ("benchmark", "plan_table", "plot", "readme_table")),
]


def private_names(source):
    """The names of the package that Python source uses and `ts.__all__` lacks."""
    found, aliases = set(), set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                ours = [alias for alias in names if alias.name.partition(".")[0] == ts.__name__]
                aliases |= {alias.asname or alias.name for alias in ours}
                found |= {alias.name for alias in ours if alias.name != ts.__name__}
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == ts.__name__:
                found |= {f"{module}.{alias.name}" for alias in names} - {f"{ts.__name__}.{one}" for one in ts.__all__}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in aliases:
                found |= {attribute} - {*ts.__all__, "__file__"}
    return found


@pytest.mark.parametrize("path", PUBLIC_ONLY, ids=lambda path: path.name)
def test_it_uses_public_names_only(path):
    assert private_names(path.read_text(encoding="utf-8")) <= FRAME


def test_private_names_are_seen():
    assert not private_names("import tokenswift_jax as ts\nfrom tokenswift_jax import load\nts.load(ts.__file__)")
    for line in ("from tokenswift_jax import stats", "from tokenswift_jax.sampling import SamplingConfig"):
        assert private_names(line)
    assert private_names("import tokenswift_jax.stats as stats") == {"tokenswift_jax.stats"}
    assert private_names("import tokenswift_jax as ts\nts.checkpoint.load") == {"checkpoint"}


def test_every_public_name_has_a_docstring():
    for name in {*ts.__all__} - {"__version__"}:
        assert getattr(ts, name).__doc__, name
