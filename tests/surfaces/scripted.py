"""A run that follows a script, so that the surfaces are tested without a model."""

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
from tokenizers_made_here import byte_level

from tokenswift_jax.engine import session
from tokenswift_jax.engine.session import RowStep, Step
from tokenswift_jax.model import Model
from tokenswift_jax.models.config import ModelConfig, RopeConfig
from tokenswift_jax.token_log import RECORD, from_records

NO_TOKENIZER = SimpleNamespace()  # tells "None was given" from "nothing was given"


def model(folder, tokenizer=NO_TOKENIZER, generation_config=None, eos_token_ids=(0,)):
    """A checkpoint in name only, in `folder`."""
    (folder / "config.json").write_text(json.dumps({"name": "scripted"}))
    rope = RopeConfig("default", 1e4, *[None] * 8)
    config = ModelConfig(
        "llama", 400, 8, 16, 2, 2, 1, 4, 1e-5, rope, 4096, True, False, False, False, False, (None, None), 0, "chained"
    )
    tokenizer = byte_level() if tokenizer is NO_TOKENIZER else tokenizer
    return Model(folder, config, tokenizer, generation_config or {}, None, {}, "float32", eos_token_ids, None)


def chunk(*tokens, finish=None):
    """One row's chunk; a token is (id, source, offset, offered)."""
    return RowStep(from_records(np.asarray(tokens, np.int32).reshape(len(tokens), 4), 0.0), finish)


def timed(row, seconds):
    """The log of a row's chunk that took so long."""
    return from_records(np.stack([getattr(row.log, name) for name in RECORD], axis=1), seconds)


def prefilled(token):
    """The chunk of the token that prefill gives."""
    return chunk((token, 0, -1, 0))


def plain(ids):
    """A chunk of plain decoding."""
    return chunk(*[(token, 0, 0, 0) for token in ids])


def drafted(*runs, offered=3, source=1):
    """A chunk of iterations: of each run all tokens but the last are accepted drafts."""
    return chunk(
        *[
            (token, source if offset < len(run) - 1 else 0, offset, offered)
            for run in runs
            for offset, token in enumerate(run)
        ]
    )


@dataclass
class ScriptedRun:
    """Gives `steps`; an exception among them is raised in its turn."""

    steps: list
    compile_seconds: float = 2.0
    prefill_seconds: float = 0.5
    prefill_stream: None = None
    plan_reason: str = "ngram, 3 nodes was 2.00x as fast as plain decoding"
    closed: bool = False
    asked: dict = field(default_factory=dict)

    def __post_init__(self):
        rows = max((len(step.rows) for step in self.steps if isinstance(step, Step)), default=1)
        self.schedule_traces = [[{"from_token": 1, "mode": "tokenswift"}] for _ in range(rows)]

    def __iter__(self):
        for step in self.steps:
            if isinstance(step, BaseException):
                raise step
            yield step

    def close(self):
        self.closed = True


def play(monkeypatch, *steps):
    """Makes `Session` give a run of `steps`: chunks of one row, lists of chunks of a batch, or exceptions."""

    def as_step(step):
        if isinstance(step, BaseException):
            return step
        rows = step if isinstance(step, list) else [step]
        seconds = 0.0 if rows[0].log.offsets.tolist() == [-1] else 0.5
        return Step(tuple(replace(row, log=timed(row, seconds)) for row in rows))

    run = ScriptedRun([as_step(step) for step in steps])

    def start(model, requests, speculation, **limits):
        first = requests[0]
        run.asked = {
            "prompts": [list(request.prompt_ids) for request in requests],
            "sampling": first.sampling,
            "speculation": speculation,
            "max_new_tokens": first.max_new_tokens,
            "min_new_tokens": first.min_new_tokens,
            "ignore_eos": not first.eos_token_ids,
            **limits,
        }
        return run

    monkeypatch.setattr(session, "Session", start)
    return run


def replay(monkeypatch, ids, size=3):
    """Makes `Session` give the rest of `ids`, `size` tokens a chunk; notes where each call began."""
    begun = []

    def start(model, requests, speculation, *, emitted=None, **limits):
        done = len(emitted[0]) if emitted else 0
        assert emitted is None or emitted[0] == ids[:done]
        begun.append(done)
        rest = ids[done : requests[0].max_new_tokens]
        steps = [] if done else [Step((prefilled(rest.pop(0)),))]
        chunks = [drafted(rest[at : at + size]) for at in range(0, len(rest), size)]
        steps += [Step((replace(row, log=timed(row, 0.25)),)) for row in chunks]
        return ScriptedRun(steps)

    monkeypatch.setattr(session, "Session", start)
    return begun
