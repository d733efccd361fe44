"""Held-out text: what is kept from training, and how a run is examined on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from flax import nnx

from tokenswift_jax.model import Model, load
from tokenswift_jax.training.accuracy import measure_accuracy
from tokenswift_jax.training.learner import Learner
from tokenswift_jax.training.metrics import MetricsWriter
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shards import Corpus, tokenise

_ENOUGH = 20  # documents of which some can be held out
_SHARE = 100  # of so many documents one is held out
_WINDOWS, _WINDOW_TOKENS = 16, 512  # of the accuracies


@dataclass(frozen=True)
class HeldOut:
    """Documents that training does not see.

    Attributes:
      corpus: where they are.
      documents: which of its documents.
    """

    corpus: Corpus
    documents: range


def held_out(
    corpus: Corpus, paths: Sequence[str], tokenizer: Any, cache: Path, strict: bool, vocab_size: int
) -> tuple[range, HeldOut | None]:
    """The documents to train on and the held-out ones: those of `paths`, else the last hundredth of the data.

    With neither (fewer than 20 documents) nothing is held out, and nothing can be examined.
    """
    if paths:
        other = tokenise(paths, tokenizer, cache, strict=strict, vocab_size=vocab_size)
        return range(corpus.documents), HeldOut(other, range(other.documents))
    if corpus.documents < _ENOUGH:
        return range(corpus.documents), None
    kept = corpus.documents - max(1, corpus.documents // _SHARE)
    return range(kept), HeldOut(corpus, range(kept, corpus.documents))


def windows(held: HeldOut, length: int, count: int) -> np.ndarray:
    """int32 [windows, length]: stretches spread evenly over the held-out documents; shorter ones if none is as long."""
    sizes = [len(held.corpus.document(index)) for index in held.documents]
    length = min(length, max(sizes))
    places = [
        (index, start)
        for index, size in zip(held.documents, sizes, strict=True)
        for start in range(0, size - length + 1, length)
    ]
    chosen = [places[at] for at in np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    return np.stack([held.corpus.document(index)[start : start + length] for index, start in chosen]).astype(np.int32)


class Examiner:
    """Examines parameters in training on held-out text.

    Attributes:
      node_set: the best node sets found last, None before.
    """

    def __init__(self, path: Path, learner: Learner, held: HeldOut, settings: TrainingSettings, say: TextIO) -> None:
        self._learner, self._settings, self._say = learner, settings, say
        self._model = load(path)
        self._windows = windows(held, _WINDOW_TOKENS, _WINDOWS)
        self.node_set: dict[str, Any] | None = None

    def model(self, params: dict[str, Any]) -> Model:
        """The target with the heads (and backbone) that are being trained."""
        learner = self._learner
        cast = jax.tree.map(lambda leaf: leaf.astype(learner.dtype), params)
        whole = nnx.merge(learner.graph, cast["heads"], cast.get("backbone", learner.backbone))
        graph, state = nnx.split(whole)
        return replace(
            self._model, config=learner.config, graphdef=graph, params=state, dtype=str(np.dtype(learner.dtype))
        )

    def examine(self, params: dict[str, Any], step: int, metrics: MetricsWriter) -> float:
        """Measures, writes the metrics, tells a person; returns the held-out loss that the best checkpoint has least.

        Under `all` that is the backbone's, else the mean of the heads'.
        """
        model = self.model(params)
        accuracy = measure_accuracy(model, self._windows)
        values = {"eval/base_loss": accuracy.base_loss}
        for number, head in enumerate(accuracy.heads, 1):
            values[f"eval/head_{number}/loss"] = head.model_loss
            values[f"eval/head_{number}/text_loss"] = head.text_loss
            for rank, share in enumerate(head.model_top, 1):
                values[f"eval/head_{number}/model_top_{rank}"] = share
        metrics.write(step, values)
        print(f"held out at step {step}: backbone {accuracy.base_loss:.3f}", file=self._say)
        for number, head in enumerate(accuracy.heads, 1):
            shares = " / ".join(f"{share:.1%}" for share in head.model_top)
            print(f"  head {number}: loss {head.model_loss:.3f}, best 1 / 2 / 3 {shares}", file=self._say)
        if self._settings.what == "all":
            return accuracy.base_loss
        return float(np.mean([head.model_loss for head in accuracy.heads]))
