"""The choice of a draft vocabulary: the tokens that occur most often in the training text."""

from __future__ import annotations

import numpy as np

from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.training.shards import Corpus


def frequent_tokens(corpus: Corpus, documents: range, size: int, vocab: int) -> tuple[DraftVocab, float]:
    """The `size` most frequent tokens of some documents, ties to the lower id, and their share of all tokens there."""
    counts = np.zeros(vocab, np.int64)
    for index in documents:
        counts += np.bincount(corpus.document(index), minlength=vocab)
    chosen = np.argsort(-counts, kind="stable")[:size]
    return DraftVocab.of(chosen), float(counts[chosen].sum() / max(counts.sum(), 1))
