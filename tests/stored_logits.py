"""Logits that transformers computed from GGUF files (tests/make_gguf_fixtures.py), and which of them are stored."""

import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
FILE = DATA / "gguf" / "logits.npz"
_GREEDY = json.loads((DATA / "smollm2" / "greedy.json").read_text())
# A prompt of SmolLM2 and the model's text after it, up to a length that the tests' other prompts of it have.
SMOLLM2_IDS = _GREEDY["book"]["prompt_ids"] + _GREEDY["book"]["token_ids"][:200]


def kept(logits):
    """Six rows of the logits, the first and the last among them; of a large vocabulary every 97th entry."""
    rows = logits[np.linspace(0, len(logits) - 1, 6).round().astype(int)]
    return rows if rows.shape[1] < 10_000 else rows[:, ::97]
