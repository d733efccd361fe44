"""The script that compares acceptance over copied positions and over blocks, with runs that are made up."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/draft_granularity.py does

import draft_granularity
from benchmarking.texts import Prompts

PROMPTS = Prompts("made up", ((1, 2), (3, 4)))


def measured(monkeypatch, run):
    monkeypatch.setattr(draft_granularity, "run_ours", run)
    arguments = draft_granularity.parse_arguments(["x", "--tokens", "13", "--draft-cache", "64", "--blocks", "16"])
    return list(draft_granularity.measure(None, PROMPTS, arguments))


def made_up(model, prompt, sampling, speculation, tokens):
    """Two passages of unequal luck; blocks take an iteration more than copies, plain decoding one a token."""
    plain = speculation.mode == "autoregressive"
    iterations = 12 if plain else prompt[0] + 2 + (speculation.draft_block is not None)
    return SimpleNamespace(token_ids=[*prompt] * 5, decoded_tokens=tokens - 1, iterations=iterations)


def test_rows_are_means_over_all_passages(monkeypatch):
    rows = measured(monkeypatch, made_up)
    assert [(row["temperature"], row["drafts"], row["draft_block"]) for row in rows] == [
        (temperature, mode, block)
        for temperature in (0.0, 1.0)
        for mode in ("partial", "selfspec")
        for block in (None, 16)
    ]
    assert {row["draft_block"]: row["tokens_per_iteration"] for row in rows} == {None: 3.0, 16: 2.4}


def test_a_text_of_its_own_is_an_error(monkeypatch):
    def wrong(model, prompt, sampling, speculation, tokens):
        run = made_up(model, prompt, sampling, speculation, tokens)
        run.token_ids[-1] += speculation.draft_block == 16
        return run

    with pytest.raises(AssertionError, match="partial with blocks of 16 wrote another text"):
        measured(monkeypatch, wrong)
