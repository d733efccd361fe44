"""Trains draft heads on stored hidden states: the backbone, which stays as it is, does not run.

    python scripts/smollm2/train_heads.py --model smollm2 --texts TEXTS --books BOOKS/*.txt --steps 3000 --output HEADS

A step reads runs of positions from all texts. The heads learn the target's own distribution of the next tokens. Logits
are computed for a part of the draft vocabulary, another one each step: the most frequent tokens, the step's own tokens
and random others. A random token counts for all those that it was drawn from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from smollm2.states import States
from tokenswift_jax import checkpoint
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.models.heads import DraftHeads, SequentialHead
from tokenswift_jax.training.export import write_checkpoint
from tokenswift_jax.training.learner import Learner, load_learner
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.trainer import Paths, default_cache

_RUN = 16  # positions of a run
_COUNTED = 400_000  # characters of a book whose tokens are counted
_ZIPF_SHIFT = 100.0
_WARMUP_STEPS = 50
_REREAD_SECONDS = 120.0  # between two looks for new texts


@dataclass(frozen=True)
class Vocabulary:
    """The draft vocabulary and the tokens whose logits a step computes.

    Attributes:
      drafted: the draft vocabulary.
      places: int32 [vocab], the index of each token in it; its length for other tokens.
      by_frequency: int64 [draft_vocab], indices in it, the most frequent token first.
      always: number of most frequent tokens that every step scores.
      scored: tokens that a step scores; 0 for all.
    """

    drafted: DraftVocab
    places: np.ndarray
    by_frequency: np.ndarray
    always: int
    scored: int

    def sample(self, tokens: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Indices int32 [scored] and the logarithms float32 [scored] of the number of tokens that each counts for."""
        size = len(self.drafted)
        if not self.scored:
            return np.arange(size, dtype=np.int32), np.zeros(size, np.float32)
        chosen = np.zeros(size + 1, bool)
        chosen[self.places[tokens]] = True
        chosen[self.by_frequency[: self.always]] = True
        sure = np.flatnonzero(chosen[:size])[: self.scored]
        others = np.flatnonzero(~chosen[:size])
        drawn = draw.choice(others, self.scored - len(sure), replace=False)
        weights = np.zeros(self.scored, np.float32)
        weights[len(sure) :] = np.log(len(others) / max(len(drawn), 1))
        return np.concatenate([sure, drawn]).astype(np.int32), weights


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and writes the checkpoint directory; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the target, or heads for it to train on")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="folders that write_texts.py writes")
    parser.add_argument("--books", type=Path, nargs="*", default=[], help="count for the draft vocabulary too")
    parser.add_argument("--draft-vocab", type=int, default=16384, help="0: that of the heads to train on")
    parser.add_argument("--scored", type=int, default=3072, help="tokens whose logits a step computes; 0: all")
    parser.add_argument("--always", type=int, default=1024, help="of them, the most frequent tokens")
    parser.add_argument("--steps", type=int, help="the end of the run, or --seconds")
    parser.add_argument("--seconds", type=float, help="the end of the run")
    parser.add_argument("--runs", type=int, default=64, help=f"of {_RUN} positions, a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate before it falls to 0")
    parser.add_argument("--decay", type=float, default=0.3, help="the part of the run in which it falls")
    parser.add_argument("--held", type=int, default=48, help="texts that only measure")
    parser.add_argument("--report-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)

    settings = TrainingSettings(heads=3, max_length=512, distill_weight=1.0)
    folder = checkpoint.resolve(options.model)
    learner = load_learner(folder, settings)
    data, measured = _split(_load(options.texts), options.held)
    counts = _counts(data, options.books, folder, learner.config.vocab_size)
    if options.draft_vocab:
        learner = learner.over(DraftVocab.of(np.argsort(-counts, kind="stable")[: options.draft_vocab]))
    drafted = learner.config.draft_vocab
    assert drafted is not None
    by_frequency = np.argsort(-counts[drafted.ids], kind="stable")
    places = drafted.places(learner.config.vocab_size)
    vocabulary = Vocabulary(drafted, places, by_frequency, options.always, options.scored)
    program = Program(learner)
    state = (learner.heads, program.optimizer.init(learner.heads))

    draw = np.random.default_rng([options.seed, 1])
    visits, begun, looked, epoch = 0, time.monotonic(), time.monotonic(), np.zeros(0, np.int64)
    options.output.mkdir(parents=True, exist_ok=True)
    log = (options.output / "log.jsonl").open("a", encoding="utf-8")
    exact = replace(vocabulary, scored=0)
    print({"step": 0, **program.measure(state[0], measured, exact)}, flush=True)
    losses: list[Any] = []
    paths = Paths(folder, (), (), options.output, default_cache())
    step, done = 0, 0.0
    while done < 1:
        step += 1
        done = (time.monotonic() - begun) / options.seconds if options.steps is None else step / options.steps
        rate = options.rate * max(0.0, min(1.0, step / _WARMUP_STEPS, (1 - done) / max(options.decay, 1e-9)))
        if len(epoch) < options.runs:
            if time.monotonic() - looked > _REREAD_SECONDS:
                data, looked = _split(_load(options.texts), options.held)[0], time.monotonic()
            epoch = data.runs(_RUN, 3, draw)
        starts, epoch = epoch[: options.runs], epoch[options.runs :]
        tokens, hidden = _read(data, starts)
        chosen, weights = vocabulary.sample(tokens[:, 2:], draw)
        state, loss = program.step(state, tokens, hidden, chosen, weights, rate)
        losses.append(loss)
        visits += len(starts) * _RUN
        if step % options.report_steps == 0 or done >= 1:
            row = {
                "step": step,
                "texts_tokens": len(data.tokens),
                "visits": visits,
                "seconds": round(time.monotonic() - begun),
                "cpu_seconds": round(time.process_time()),
                "loss": np.mean(losses, axis=0).round(3).tolist(),
                **program.measure(state[0], measured, exact),
            }
            losses = []
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)
            facts = {"options": {name: str(value) for name, value in vars(options).items()}, **row}
            write_checkpoint(paths, learner, {"heads": state[0]}, settings, None, facts)
    return 0


class Program:
    """The jitted functions of a run."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        model: Decoder = nnx.merge(learner.graph, learner.heads, learner.backbone)
        self.embeddings = jnp.asarray(model.embed_tokens[...], jnp.bfloat16)
        head = model.embed_tokens[...] if model.lm_head is None else model.lm_head.kernel[...].T
        assert learner.config.draft_vocab is not None
        self.scores = jnp.asarray(head[learner.config.draft_vocab.ids], jnp.bfloat16)
        self.norm = model.norm
        assert model.draft_heads is not None
        self.graph = nnx.split(model.draft_heads)[0]
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.98))
        self._rounded = jax.jit(self._round)
        self._step = jax.jit(self._one_step, donate_argnums=(0, 1))
        self._evaluate = jax.jit(self._accuracy)

    def step(self, state: Any, tokens: Any, hidden: Any, chosen: Any, weights: Any, rate: float) -> Any:
        """((heads, optimizer state), losses float32 [heads]) after a step."""
        rounded = self._rounded(state[0], self.scores, chosen)
        *state, loss = self._step(*state, tokens, hidden, weights, np.float32(rate), self.embeddings, rounded)
        return tuple(state), loss

    def _round(self, heads: Any, scores: jax.Array, chosen: jax.Array) -> Any:
        """Each head's kernels and the part of the LM head in bfloat16, each with its transpose.

        XLA for CPU multiplies by a transposed matrix at half the speed. Within one program it would undo the transpose.
        """
        model, part = self._merged(heads), scores[chosen]
        kernels = [[kernel.astype(jnp.bfloat16) for kernel in _kernels(head)] for head in model.heads]
        return [[(kernel, kernel.T) for kernel in head] for head in kernels], (part, part.T)

    def _merged(self, heads: Any) -> DraftHeads:
        return nnx.merge(self.graph, heads["draft_heads"])

    def _outputs(
        self, heads: Any, tokens: jax.Array, hidden: jax.Array, embeddings: jax.Array, rounded: Any
    ) -> list[jax.Array]:
        """Each head's LM-head input, [runs, positions, hidden_size]."""
        model = self._merged(heads)
        above = embeddings[tokens[:, 1:-1]].astype(jnp.float32)
        here, outputs = hidden[:, :_RUN].astype(jnp.float32), []
        for index in range(self.learner.config.num_draft_heads):
            here, output = _head(model.heads[index], rounded[index], here, above[:, index : index + _RUN])
            outputs.append(output)
        return outputs

    def _teacher(self, hidden: jax.Array, scores: jax.Array) -> jax.Array:
        """Logits [runs, positions + heads - 1, tokens] after a run's first position; scores [hidden_size, tokens]."""
        return _product(self.norm(hidden[:, 1:].astype(jnp.float32)), scores)

    def _one_step(
        self,
        heads: Any,
        optimizer: Any,
        tokens: jax.Array,
        hidden: jax.Array,
        weights: jax.Array,
        rate: jax.Array,
        embeddings: jax.Array,
        rounded: Any,
    ) -> Any:
        kernels, (part, columns) = rounded
        aims = jax.nn.log_softmax(self._teacher(hidden, columns) + weights[None, None], axis=-1)

        def total(heads: Any) -> tuple[jax.Array, jax.Array]:
            found, surrogate = [], jnp.float32(0)
            for index, output in enumerate(self._outputs(heads, tokens, hidden, embeddings, kernels)):
                aim = aims[:, index : index + _RUN]
                guess = jax.nn.log_softmax(
                    _product(jax.lax.stop_gradient(output), columns) + weights[None, None], axis=-1
                )
                share = jnp.exp(aim)
                found.append(jnp.mean(jnp.sum(share * (aim - guess), axis=-1)))
                slope = (jnp.exp(guess) - share).astype(jnp.bfloat16)
                # Without the barriers XLA computes the elementwise part again within each product.
                back = _product(jax.lax.optimization_barrier(slope), part)
                surrogate = surrogate + jnp.mean(jnp.sum(output * jax.lax.stop_gradient(back), axis=-1))
            return surrogate, jnp.stack(found)

        gradient, losses = jax.grad(total, has_aux=True)(heads)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer = self.optimizer.update(gradient, optimizer, heads)
            heads = jax.tree.map(lambda value, update: value - rate * update, heads, updates)
        return heads, optimizer, losses

    def measure(self, heads: Any, measured: States, vocabulary: Vocabulary) -> dict[str, Any]:
        """How often a chain of greedy guesses agrees with the target's greedy choice on held-out texts."""
        starts = measured.runs(_RUN, 3, np.random.default_rng(0))
        hits, shared = [], []
        rows = min(64, len(starts))  # one shape, so one program
        for at in range(0, len(starts) - rows + 1, rows):
            tokens, hidden = _read(measured, starts[at : at + rows])
            one, two = self._evaluate(heads, tokens, hidden, self.embeddings, self.scores)
            hits.append(np.asarray(one))
            shared.append(np.asarray(two))
        right = np.cumprod(np.concatenate(hits, axis=1), axis=0)
        return {
            "right": right.mean(axis=(1, 2)).round(3).tolist(),
            "overlap": np.concatenate(shared, axis=1).mean(axis=(1, 2)).round(3).tolist(),
        }

    def _accuracy(
        self, heads: Any, tokens: jax.Array, hidden: jax.Array, embeddings: jax.Array, scores: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Whether the best guess is the target's best [heads, runs, positions], and the share of both distributions
        that agrees, with the text's own tokens above."""
        logits = self._teacher(hidden, scores.T)
        hits, shared = [], []
        kernels, _ = self._round(heads, scores, jnp.zeros(1, jnp.int32))
        for index, output in enumerate(self._outputs(heads, tokens, hidden, embeddings, kernels)):
            aim, guess = logits[:, index : index + _RUN], _product(output, scores.T)
            hits.append(jnp.argmax(aim, axis=-1) == jnp.argmax(guess, axis=-1))
            shared.append(jnp.sum(jnp.minimum(jax.nn.softmax(aim), jax.nn.softmax(guess)), axis=-1))
        return jnp.stack(hits), jnp.stack(shared)


def _kernels(head: SequentialHead) -> tuple[jax.Array, jax.Array]:
    gate_up = jnp.concatenate([head.gate_proj.kernel[...], head.up_proj.kernel[...]], axis=-1)
    return gate_up, head.down_proj.kernel[...]


def _head(
    head: SequentialHead, rounded: Sequence[tuple[jax.Array, jax.Array]], hidden: jax.Array, above: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`SequentialHead` with products in bfloat16, which CPUs with AVX512-BF16 multiply faster; it sums in float32."""
    z = jnp.concatenate([head.input_layernorm(hidden), head.token_layernorm(above)], axis=-1)
    gate_up, down = _kernels(head)
    gate, up = jnp.split(_multiplied(z.reshape(-1, z.shape[-1]), gate_up, *rounded[0]), 2, axis=-1)
    hidden = hidden + _multiplied(jax.nn.silu(gate) * up, down, *rounded[1]).reshape(hidden.shape)
    return hidden, head.post_layernorm(hidden)


@jax.custom_vjp
def _multiplied(x: jax.Array, kernel: jax.Array, rounded: jax.Array, transposed: jax.Array) -> jax.Array:
    """x [rows, in] times kernel [in, out]; `rounded` is the kernel in bfloat16 and gets no gradient."""
    return _dot(x.astype(jnp.bfloat16), rounded)


def _forward(x: jax.Array, kernel: jax.Array, rounded: jax.Array, transposed: jax.Array) -> Any:
    x = x.astype(jnp.bfloat16)
    return _dot(x, rounded), (x, rounded, transposed)


def _backward(kept: tuple[jax.Array, jax.Array, jax.Array], slope: jax.Array) -> Any:
    x, rounded, transposed = kept
    slope = slope.astype(jnp.bfloat16)
    return _dot(slope, transposed), _dot(x.T, slope), jnp.zeros_like(rounded), jnp.zeros_like(transposed)


_multiplied.defvjp(_forward, _backward)


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [runs, positions, in] times a bfloat16 matrix [in, out], float32."""
    return _dot(x.astype(jnp.bfloat16).reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _load(folders: Sequence[Path]) -> States:
    return States.load([file for folder in folders for file in sorted(folder.glob("*.npz"))])


def _split(every: States, count: int) -> tuple[States, States]:
    """The texts to learn from, and the first ones, which only measure."""
    cut = every.offsets[count]
    first = States(every.tokens[:cut], every.hidden[:cut], every.offsets[: count + 1])
    return States(every.tokens[cut:], every.hidden[cut:], every.offsets[count:] - cut), first


def _read(data: States, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [runs, positions + heads + 1] and states [runs, positions + heads, hidden_size]."""
    rows = starts[:, None] + np.arange(_RUN + 4)
    return data.tokens[rows], data.hidden[rows[:, :-1]]


def _counts(data: States, books: Sequence[Path], folder: Path, vocab: int) -> np.ndarray:
    """The share of each token, float64 [vocab]: summed over the model's texts, the books, and a guess by the tokenizer.

    Byte pair encoding merges frequent pairs first, so low ids are frequent in the tokenizer's own training text.
    """
    zipf = 1 / (np.arange(vocab) + _ZIPF_SHIFT)
    shares = np.bincount(data.tokens, minlength=vocab) / len(data.tokens) + zipf / zipf.sum()
    if books:
        tokenizer = checkpoint.load_tokenizer(folder)
        assert tokenizer is not None
        found = np.zeros(vocab)
        for path in books:
            found += np.bincount(tokenizer(path.read_text(encoding="utf-8")[:_COUNTED]).input_ids, minlength=vocab)
        shares = shares + found / found.sum()
    return shares


if __name__ == "__main__":
    sys.exit(main())
