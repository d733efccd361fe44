"""Self-distillation: the target itself writes the texts of the training, in place of the data's own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from tokenswift_jax.api import generate
from tokenswift_jax.checkpoint.directory import read_config
from tokenswift_jax.checkpoint.fingerprints import fingerprint
from tokenswift_jax.engine.journal import checked_line, checked_record
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.model import load
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.training.learner import compute_dtype
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shards import Corpus, corpus_of_ids
from tokenswift_jax.training.shares import ONE_DEVICE, Shares

_FORMAT = 3  # a change that gives other texts for the same settings raises it
PROMPT_SHARE = 8  # one token in this many is the prompt's
_TOKENS_AT_ONCE, _MOST_ROWS = 1 << 16, 32  # limits of a batch, so that its cache fits beside the parameters


def written_by_target(
    model_dir: Path,
    corpus: Corpus,
    documents: range,
    settings: TrainingSettings,
    cache: Path,
    say: TextIO,
    shares: Shares = ONE_DEVICE,
) -> Corpus:
    """A corpus of `settings.self_distill` texts, each a prompt from the data and the target's own continuation.

    Prompts are the first tokens (`prompt_tokens`) of pieces spread evenly over the data. With fewer pieces than texts,
    some pieces serve several times, with other draws. The target draws each continuation from its own
    distribution (temperature 1, no filter), up to `max_length` or an EOS; text i is number i of the seed. The folder in
    `cache` has as its name a hash of everything that decides the corpus. A killed run continues after its last whole
    batch.

    Args:
      model_dir: checkpoint directory of the target.
      corpus, documents: the data, and the numbers of the documents from which prompts may come.
      settings: `self_distill`, `self_distill_prompt`, `max_length`, `seed` and the dtype decide the texts; drafts do
        not change them.
      cache: folder of tokenised data.
      say: the stream for one line of progress a batch.
      shares: the devices of the run; the target decodes on all of them, which share it along the model axis.

    Raises:
      UserError: no document has two tokens, the cache cannot be written, or a batch does not fit in memory.
      KeyboardInterrupt: an interrupt, also one that arrives while the target writes.
    """
    dtype = compute_dtype(settings)
    span = [documents.start, documents.stop]
    what = [_FORMAT, fingerprint(model_dir), corpus.digest, span, settings.self_distill, settings.max_length]
    what += [prompt_tokens(settings), settings.seed, dtype.name]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    vocab = read_config(model_dir)["vocab_size"]
    folder = cache / f"self-{key}"
    journal = cache / f"self-{key}.jsonl"

    def texts() -> Iterator[list[int]]:
        written = _read_journal(journal, vocab)
        yield from written
        model = load(model_dir, dtype, mesh=shares.decoding)
        speculation = SpeculationConfig(draft_cache=settings.draft_cache, draft_sinks=settings.draft_sinks)
        prompts = choose_prompts(corpus, documents, settings)
        rows = min(max(_TOKENS_AT_ONCE // settings.max_length, 1), _MOST_ROWS)
        with journal.open("a", encoding="utf-8") as file:
            for first in range(len(written), len(prompts), rows):
                begun, batch = time.perf_counter(), prompts[first : first + rows]
                results = generate(
                    model,
                    batch,
                    SamplingConfig(seed=settings.seed, sequence=first),
                    speculation,
                    max_new_tokens=[settings.max_length - len(prompt) for prompt in batch],
                    min_new_tokens=0,
                    stop=(),
                )
                if any(result.finish_reason == INTERRUPTED for result in results):
                    raise KeyboardInterrupt
                done = [prompt + result.token_ids for prompt, result in zip(batch, results, strict=True)]
                with writing(journal):
                    file.writelines(checked_line({"ids": ids}).decode() for ids in done)
                    file.flush()
                    os.fsync(file.fileno())
                speed = sum(result.generated_tokens for result in results) / (time.perf_counter() - begun)
                progress = f"{first + len(batch)}/{len(prompts)} texts, {speed:,.0f} tokens/s"
                print(f"self-distillation: {progress}", file=say, flush=True)
                yield from done

    written = corpus_of_ids(folder, texts, vocab - 1)
    journal.unlink(missing_ok=True)
    print(f"self-distillation: {written.report()}", file=say, flush=True)
    return written


def prompt_tokens(settings: TrainingSettings) -> int:
    """The number of tokens of a prompt, if its piece has as many."""
    return settings.self_distill_prompt or max(1, settings.max_length // PROMPT_SHARE)


def choose_prompts(corpus: Corpus, documents: range, settings: TrainingSettings) -> list[list[int]]:
    """The beginnings of `self_distill` pieces of `max_length` tokens, spread evenly over the documents.

    A piece's last token, which may be an EOS, never belongs to its prompt.

    Raises:
      UserError: no document has two tokens.
    """
    sizes = [(index, len(corpus.document(index))) for index in documents]
    length = settings.max_length
    places = [(index, start) for index, size in sizes for start in range(0, size - 1, length)]
    if not places:
        raise UserError("no document has two tokens, so there is nothing for the target to continue")
    chosen = []
    for at in np.linspace(0, len(places) - 1, settings.self_distill).astype(int):
        index, start = places[at]
        piece = corpus.document(index)[start : start + length]
        chosen.append(piece[: min(prompt_tokens(settings), len(piece) - 1)].tolist())
    return chosen


def _read_journal(path: Path, vocab: int) -> list[list[int]]:
    """The texts of a killed run up to the first damaged line, which a kill may have torn; the file ends there then."""
    if not path.exists():
        return []
    texts, end = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        ids = (checked_record(line[:-1], required=True) or {}).get("ids") if line.endswith(b"\n") else None
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocab for token in ids):
            break
        texts.append(ids)
        end += len(line)
    with path.open("rb+") as file:
        file.truncate(end)
    return texts
