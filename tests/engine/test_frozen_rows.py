"""Iterations on frozen rows, which measure a plan: they change neither the text nor what later iterations accept."""

import numpy as np
import pytest
import small_models
from decoded import start
from speculations import SPECULATIONS

from tokenswift_jax.engine.session import Session
from tokenswift_jax.sampling import SamplingConfig

MODEL = small_models.successor_model(layers=1)


def write(monkeypatch, speculation, frozen):
    """Records of 300 tokens; `frozen` iterations on frozen rows come before every chunk."""
    seconds, send = [], Session._send

    def measured(self, catch_up=0.0):
        named, _ = self._policy.next_plan()
        if frozen:
            seconds.append(self.engine.frozen_seconds(named, frozen))
        return send(self, catch_up)

    monkeypatch.setattr(Session, "_send", measured)
    run = start(MODEL, [[5, 17, 3], [9]], SamplingConfig(temperature=0.9, seed=3), speculation, max_new_tokens=300)
    steps = list(run)
    columns = ("token_ids", "sources", "offsets", "offered")
    return [
        [np.concatenate([getattr(step.rows[row].log, name) for step in steps]).tolist() for name in columns]
        for row in range(2)
    ], seconds


@pytest.mark.parametrize("mode", ["plain", "partial", "partial blocks", "fused", "selfspec", "ngram"])
def test_frozen_iterations_change_nothing(monkeypatch, mode):
    alone, _ = write(monkeypatch, SPECULATIONS[mode], 0)
    measured, seconds = write(monkeypatch, SPECULATIONS[mode], 3)
    assert measured == alone
    assert len(seconds) > 5
    assert min(seconds) > 0
