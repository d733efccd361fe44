"""The converters report the bytes that they write; minutes pass over a large checkpoint."""

import io
import sys
from contextlib import contextmanager

import pytest

from convert import export as export_command
from convert import hf as hf_command
from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax.checkpoint import open_checkpoint


@pytest.fixture
def reports(monkeypatch):
    """The reports of the converters' phases, in order."""
    seen = []

    @contextmanager
    def recorded(quiet):
        assert not quiet
        yield lambda *one: seen.append(one)

    for command in (hf_command, export_command):
        monkeypatch.setattr(command, "progress", recorded)
    return seen


@pytest.mark.parametrize("flags", [[], ["--orbax"], ["--dtype", "bfloat16"], ["--dtype", "float16", "--orbax"]])
def test_a_conversion_counts_its_bytes(tmp_path, reports, flags):
    hf_command.convert([str(FAMILIES / "llama2"), str(tmp_path / "out"), *flags])
    written = sum(tensor.nbytes for tensor in open_checkpoint(tmp_path / "out").tensors.values())
    assert {(name, total, unit) for name, _, total, unit in reports} == {("writing the checkpoint", written, "bytes")}
    done = [one[1] for one in reports]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, written)
    assert len({*done}) > 10  # a report a tensor


def test_an_export_counts_its_bytes_and_tells_of_its_check(tmp_path, reports):
    export_command.export([str(FAMILIES / "llama2"), str(tmp_path / "out")])
    names = [one[0] for one in reports]
    assert list(dict.fromkeys(names)) == ["writing the checkpoint", "reading the export with transformers"]
    assert names.count("writing the checkpoint") > 10


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_the_conversion(tmp_path, monkeypatch, quiet):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    hf_command.convert([str(FAMILIES / "llama2"), str(tmp_path / "out"), *(["--quiet"] if quiet else [])])
    shown = sys.stderr.getvalue()
    assert ("writing the checkpoint: 0.0 of " in shown) is not quiet
    assert bool(shown) is not quiet
