"""A fault around a command gets one line, not the error of the library that stumbles over it."""

import jax
import pytest

from tokenswift_jax.cli.generate import main


@pytest.mark.parametrize(
    ("named", "error", "reason"),
    [
        ("cuda", AssertionError(), "JAX finds no device of JAX_PLATFORMS=cuda; unset"),
        (
            "rocm",
            RuntimeError("Unable to initialize"),
            "JAX finds no device of JAX_PLATFORMS=rocm; unset",
        ),
        (None, RuntimeError("no supported\ndevices"), "JAX finds no device: no supported devices"),
    ],
)
def test_a_platform_that_is_not_there(monkeypatch, capsys, named, error, reason):
    """As JAX fails at its first use; this process has used it already."""

    def fails():
        raise error

    monkeypatch.setattr(jax, "process_count", fails)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", named)
    try:
        assert main(["--quiet", "--max-new-tokens", "1"]) == 2
    finally:
        jax.config.update("jax_platforms", before)
    assert capsys.readouterr().err.startswith(f"error: {reason}")


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["--max-new-tokens", "1"]) == 2
    assert capsys.readouterr().err == "error: the working folder is not there any more; change to another one (cd)\n"
