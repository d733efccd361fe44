"""Names that the system refuses, loops of links and files that are no files are one line, before anything is loaded."""

import errno
import os

import pytest

import tokenswift_jax as ts
from tokenswift_jax.cli.generate import main
from tokenswift_jax.engine.journal import Journal, recorded_header

LONG = "x" * 300


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--prompt-file", "loop"], "prompt file loop: Too many levels of symbolic links"),
        (["--output", "loop"], "--output loop is a loop of links; name a file"),
        (["--stats", "loop"], "--stats loop is a loop of links; name a file"),
        (["--journal", "loop"], "--journal loop is a loop of links; name a file"),
        (["--output", LONG], "File name too long"),
        (["--journal", LONG], "File name too long"),
        (["--model", LONG, "--prompt", "x"], "File name too long"),
        (["--model", "loop.gguf", "--prompt", "x"], "loop.gguf"),
        (["--documents", "loop", "--output", "loop"], "--documents loop: Too many levels"),
        (["--journal", "/dev/zero", "--resume"], "journal /dev/zero is no regular file; name another file"),
        (["--journal", "/dev/zero", "--resume", "--prompt", "x"], "journal /dev/zero is no regular file"),
    ],
)
def test_a_name_that_does_not_work(here, capsys, words, reason):
    assert main(["--quiet", "--max-new-tokens", "1", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_folder_that_may_not_be_searched(here, monkeypatch, capsys):
    """As for a person without the rights, which a test's user may have."""
    stat = os.stat

    def refused(path, *arguments, **options):
        if "secret" in os.fsdecode(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    for words in (["--journal", "secret/j", "--resume"], ["--model", "secret/m", "--prompt", "x"]):
        assert main(["--quiet", "--max-new-tokens", "1", *words]) == 2
        assert "Permission denied" in capsys.readouterr().err


def test_a_zero_byte_is_no_name():
    with pytest.raises(ts.UserError, match="it has a zero byte"):
        ts.load("a\0b")


def test_a_link_to_a_file_that_is_not_there_yet(here):
    (here / "link").symlink_to("journal")
    journal = Journal("link", {"seed": 1}, resume=False)
    journal.begin()
    journal.close()
    assert os.readlink("link") == "journal"
    assert (recorded_header("link") or {})["seed"] == 1
