"""The figures: what is drawn of which rows, the same bytes every time, footers that say where numbers come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenswift_jax.errors import UserError

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/plot.py does

import plot
from plot import figures, footer

image = pytest.importorskip("matplotlib.image")


def row(section, contender, **fields):
    """A row with the fields that all sections have."""
    return {
        "section": section,
        "contender": contender,
        "quick": False,
        "model": "a model",
        "dtype": "float32",
        "cpu": "a processor",
        "cores": 2,
        "device": "cpu",
        "versions": {"jax": "0.10.2", "numpy": "2"},
        "date": "2026-11-22T10:00:00+00:00",
        "load_average": [0.5, 1.0, 1.0],
        "checkpoint": "c",
        "prompt": {"digest": "d"},
        "sampling": "checkpoint",
        "temperature": 1.0,
        "prefix": 2048,
        "asked_tokens": 20480,
        "schedule": None,
        "mode": contender,
    } | fields


def text(contender, times, ratio):
    windows = [{"tokens": 1024, "ms_per_token": time, "tokens_per_iteration": 5 - time} for time in times]
    fields = {"latency": windows, "latency_coarse": [windows[0] | {"tokens": 1024 * len(times)}]}
    if ratio is not None:
        fields |= {"speed_vs_autoregressive": {"median": ratio}, "acceptance_rate": 0.5, "ngram_share": 0.1}
    return row("protocol", contender, draft_depth=9, **fields)


ROWS = [
    text("autoregressive", [1.0, 2.0, 3.0], None),
    text("tokenswift-fused", [0.5, 0.7, 0.9], 2.8),
]


def test_a_file_becomes_figures_that_are_the_same_every_time(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    names = ["protocol-ms-per-token", "protocol-tokens-per-iteration", "protocol-speedup"]
    for folder in ("one", "two"):
        assert plot.main([str(source), "--output", str(tmp_path / folder / "figures")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [str(tmp_path / "one" / "figures" / f"{name}.png") for name in names]
    for name in names:
        first, again = (tmp_path / folder / "figures" / f"{name}.png" for folder in ("one", "two"))
        assert first.read_bytes() == again.read_bytes()
        assert len(first.read_bytes()) < 100_000
        pixels = image.imread(first)
        assert (np.ptp(pixels[..., :3], axis=-1) > 0.2).sum() > 200  # neither paper nor grey


def test_only_what_was_measured_is_drawn():
    assert "protocol-ms-per-token" in figures([text("autoregressive", [1.0], None)])
    assert figures([one | {"quick": True} for one in ROWS]) == {}
    assert figures([{"kernel": "tree_attention"}]) == {}


def test_the_footer_names_every_machine_once():
    other = row("protocol", "medusa", date="2026-11-24T09:00:00+00:00", load_average=[2.0, 0, 0])
    assert footer([*ROWS, other, row("protocol", "auto", cpu="another", load_average=None)]) == [
        "a model in float32; a processor, 2 cores, cpu; jax 0.10.2; 2026-11-22 to 2026-11-24; load 0.5 to 2",
        "a model in float32; another, 2 cores, cpu; jax 0.10.2; 2026-11-22",
    ]


def test_files_that_cannot_be_drawn(tmp_path, capsys, monkeypatch):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(ROWS[0] | {"quick": True}))
    assert plot.main([str(source)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    for content, message in (("{torn", "does not hold JSON lines"), ("[1]", "something else than objects")):
        source.write_text(content)
        with pytest.raises(UserError, match=message):
            plot.read_rows(source)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"tokenswift_jax\[train\]"):
        plot.draw(ROWS, tmp_path)


def test_a_text_without_plain_decoding_beside_it_has_no_speedup(tmp_path):
    alone = text("tokenswift-fused", [2.0, 3.0], None)
    assert sorted(figures([alone])) == ["protocol-ms-per-token", "protocol-tokens-per-iteration"]
    assert "protocol-speedup" in figures([alone | {"speed_vs_autoregressive": {"median": 1.5}}])
