"""The command `serve`: wrong flags, names, slots and memory."""

from typing import Any

import pytest
import small_models

from tokenswift_jax.cli import phases
from tokenswift_jax.engine import host_memory
from tokenswift_jax.serve import cli, extra
from tokenswift_jax.serve.cli import _served_name
from tokenswift_jax.speculation import SpeculationConfig

pytest.importorskip("starlette")


def test_the_name_of_a_model(tmp_path):
    (tmp_path / "My-Model").mkdir()
    (tmp_path / "weights.Q8.gguf").write_text("")
    assert _served_name(None) == "tokenswift-demo"
    assert _served_name("org/model") == "org/model"
    assert _served_name(f"{tmp_path}/My-Model/") == "My-Model"
    assert _served_name(str(tmp_path / "weights.Q8.gguf")) == "weights.Q8"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-length", "200000"], "--max-length 200000 exceeds the model's 131072 positions; ask for less"),
        (["--slots", "1,0"], "--slots has a group of 0"),
        (["--slots", "100000", "--max-length", "131072"], "are free; lower --max-length or --slots"),
        (["--slots", "two"], "--slots"),
        (["--mode", "medusa", "--ngram-k", "3"], "--mode medusa has no use for --ngram-k; leave out one or the other"),
        (["--mode", "autoregressive", "--node-budget", "5"], "--mode autoregressive has no use for --node-budget"),
        (["--api-key", "a b"], "an API key has characters that no header holds"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--state-dir", "/proc/nowhere"], "--state-dir /proc/nowhere/runs cannot be used"),
        (["--mesh", "stage=2"], "--mesh stage=2: a server has no stages: the program that sends a prompt through them"),
        (["--mesh", "model=9"], "--mesh model=9 needs 9 devices, and there are 8; "),
        (
            ["--mesh", "model=2", "--slots", "100000", "--max-length", "131072"],
            "GB are missing; lower --max-length or --slots",
        ),
        (["--sing"], "unrecognized arguments: --sing; serve --help lists the flags"),
    ],
)
def test_wrong_flags_are_one_line(words, message, capsys, monkeypatch):
    """A slow machine says every ten seconds what it loads; those lines are not the error's."""
    monkeypatch.setattr(phases, "_SECONDS_BETWEEN_LINES", float("inf"))
    assert cli.main([*words, "--port", "0"], "serve") == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_earlier_texts_get_a_part_of_the_memory_that_the_slots_leave(monkeypatch):
    """On a CPU both are in the host's memory."""
    model, speculation = small_models.random_model(48), SpeculationConfig()
    sizes: Any = {"max_length": 40, "slots": [2], "short_slots": 0}
    (pool,) = cli.make_pools(model, speculation, **sizes)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: pool.bytes + 2**26)
    (pool,) = cli.make_pools(model, speculation, **sizes)
    assert pool.prefixes is not None
    assert pool.prefixes.budget == 2**24
    monkeypatch.setattr(host_memory, "available_bytes", lambda: pool.bytes - 1)
    assert cli.make_pools(model, speculation, **sizes)[0].prefixes is None


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert cli.main([], "serve") == 2
    assert "pip install 'tokenswift_jax[serve]'" in capsys.readouterr().err
