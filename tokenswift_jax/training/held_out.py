"""Held-out text: the documents that training does not see, and the evaluation of a run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from flax import nnx

from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.save import parameter_tensor
from tokenswift_jax.model import Model, load
from tokenswift_jax.training.evaluation import evaluate
from tokenswift_jax.training.learner import Learner
from tokenswift_jax.training.metrics import MetricsWriter
from tokenswift_jax.training.prediction import Continuations
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shards import Corpus, tokenise
from tokenswift_jax.training.shares import ONE_DEVICE, Shares

_ENOUGH = 20  # fewest documents from which some are held out
_SHARE = 100  # one document in this many is held out
_WINDOWS, _WINDOW_TOKENS = 16, 512  # windows for the accuracies, and tokens of each
_PROMPT_TOKENS = 256  # tokens of a prompt that the target continues


@dataclass(frozen=True)
class HeldOut:
    """Documents that training does not see.

    Attributes:
      corpus: the corpus that contains them.
      documents: their numbers in the corpus.
    """

    corpus: Corpus
    documents: range


def held_out(
    corpus: Corpus, paths: Sequence[str], tokenizer: Any, cache: Path, strict: bool, vocab_size: int
) -> tuple[range, HeldOut | None]:
    """The documents to train on, and the held-out ones: those of `paths`, else the last hundredth of the data.

    Without `paths` and with fewer than 20 documents, no document is held out, and no evaluation is possible.
    """
    if paths:
        other = tokenise(paths, tokenizer, cache, strict=strict, vocab_size=vocab_size)
        return range(corpus.documents), HeldOut(other, range(other.documents))
    if corpus.documents < _ENOUGH:
        return range(corpus.documents), None
    kept = corpus.documents - max(1, corpus.documents // _SHARE)
    return range(kept), HeldOut(corpus, range(kept, corpus.documents))


def windows(examined: HeldOut, length: int, count: int) -> np.ndarray:
    """Windows spread evenly over the held-out documents, int32 [windows, length]; if no document has `length` tokens,
    the windows have the length of the longest."""
    sizes = [len(examined.corpus.document(index)) for index in examined.documents]
    length = min(length, max(sizes))
    places = [
        (index, start)
        for index, size in zip(examined.documents, sizes, strict=True)
        for start in range(0, size - length + 1, length)
    ]
    chosen = [places[at] for at in np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    return np.stack([examined.corpus.document(index)[start : start + length] for index, start in chosen]).astype(
        np.int32
    )


class Examiner:
    """The evaluation of parameters on held-out text during training.

    Attributes:
      found: what the last evaluation found (`Evaluation.found`); empty before the first.
    """

    def __init__(
        self,
        path: Path,
        learner: Learner,
        examined: HeldOut,
        settings: TrainingSettings,
        say: TextIO,
        shares: Shares = ONE_DEVICE,
    ) -> None:
        self._learner, self._settings, self._say = learner, settings, say
        # Without this, the parameters of the file stay in memory beside those in training.
        self._loaded = replace(load(path, mesh=shares.decoding), params=None)
        self._windows = windows(examined, min(_WINDOW_TOKENS, learner.config.max_position_embeddings), _WINDOWS)
        self._continuations: Sequence[Continuations] | None = None
        self._graph: Any = None
        self.found: dict[str, Any] = {}

    def model(self, params: dict[str, Any]) -> Model:
        """The target with the heads (and the backbone) in training."""
        if self._loaded.mesh is not None:
            return self._shared(params)
        learner = self._learner
        cast = jax.tree.map(lambda leaf: leaf.astype(learner.dtype), params)
        whole = nnx.merge(learner.graph, cast["heads"], cast.get("backbone", learner.backbone))
        graph, state = nnx.split(whole)
        self._graph = self._graph or graph  # without one shared object, JAX compiles every program again
        name = str(np.dtype(learner.dtype))
        return replace(self._loaded, config=learner.config, graphdef=self._graph, params=state, dtype=name)

    def _shared(self, params: dict[str, Any]) -> Model:
        """The same on a mesh: the loader gives each device the part that it decodes with, as of a checkpoint whose
        tensors the trained parameters replace. Those parts exist during an evaluation alone."""
        loaded, learner = self._loaded, self._learner
        opened = checkpoint.open_checkpoint(loaded.path, loaded.rope_override)
        trained = {
            path: parameter_tensor(path, param) for state in params.values() for path, param in nnx.to_flat_state(state)
        }
        names = set(trained) | {path for path in opened.tensors if path[0] != "draft_heads"}
        tensors = {path: trained.get(path) or opened.tensors[path] for path in names}
        opened = replace(opened, config=learner.config, tensors=tensors)
        config, graph, state = checkpoint.load_decoder(opened, learner.dtype, mesh=loaded.mesh)
        self._graph = self._graph or graph  # without one shared object, JAX compiles every program again
        name = str(np.dtype(learner.dtype))
        return replace(loaded, config=config, graphdef=self._graph, params=state, dtype=name)

    def examine(self, params: dict[str, Any], step: int, metrics: MetricsWriter) -> float:
        """Evaluates the parameters, writes the metrics, prints the table, and returns the held-out loss.

        The best checkpoint is the one with the least such loss. Under `all` it is the loss of the backbone, else the
        mean loss of the heads.
        """
        settings, length = self._settings, self._windows.shape[1]
        room = self._learner.config.max_position_embeddings
        prompt = max(1, min(_PROMPT_TOKENS, length, room // 2))
        result = evaluate(
            self.model(params),
            self._windows,
            seed=settings.seed,
            prompts=settings.evaluate_prompts,
            prompt_tokens=prompt,
            continuation=min(settings.evaluate_tokens, room - prompt),
            continuations=self._continuations,
        )
        if settings.what == "heads":
            self._continuations = result.continuations  # a frozen target would write the same texts again
        self.found = result.found
        metrics.write(step, result.metrics())
        print(f"step {step}, {result.table()}", file=self._say)
        if settings.what == "all":
            return result.accuracy.base_loss
        return float(np.mean([head.model_loss for head in result.accuracy.heads]))
