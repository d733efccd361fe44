"""The examples for clusters: short, of right syntax, and with flags that exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tokenswift_jax.cli.flags import flag_parser
from tokenswift_jax.training.cli import trainer_parser

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "cluster").iterdir())
_NOT_OURS = {"--kill-on-bad-exit"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_right(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    if path.suffix == ".py":
        ast.parse(text)
    elif path.suffix == ".yaml":
        parsed = yaml.safe_load(text)
        assert parsed.get("kind") == "JobSet" or subprocess.run(["bash", "-n", "-c", parsed["run"]]).returncode == 0
    else:
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    flags = set(re.findall(r"(?<![\w-])--[a-z-]+", code)) - _NOT_OURS
    assert flags
    options = trainer_parser("train") if "train" in path.stem else flag_parser()
    assert flags <= set(options.flags.values())
