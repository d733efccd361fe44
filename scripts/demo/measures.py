"""Measures of a trained demo model: bits per character, loss by position, how often heads guess the backbone's word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from demo.attention import blocked_attention
from demo.losses import cross_entropy
from tokenswift_jax.models.decoder import Decoder

ATTENTION_BLOCK = 256  # queries


def forward_pass(model: Decoder) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """Jitted map of one window's ids [T] to hidden states [T, d] and float32 logits [T, V]; compiled per length."""
    graph, params = nnx.split(model)
    attention = blocked_attention(ATTENTION_BLOCK)

    @jax.jit
    def forward(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.hidden(tokens[None], positions[None], attention, None)
        return hidden[0], model.logits(hidden)[0]

    return lambda tokens: forward(params, jnp.asarray(tokens, jnp.int32))


def bits_per_character(model: Decoder, ids: np.ndarray, characters: int, length: int, stride: int) -> float:
    """Every token of a text scored once, in windows of `length` tokens that advance by `stride`.

    A token sees at least length - stride tokens before it, but for the first window's.
    """
    forward = forward_pass(model)
    ids = np.concatenate([[0], ids])  # the end mark opens a book, as in training
    total, scored = 0.0, 0  # scored: how many of the targets ids[1:] are done
    while scored < len(ids) - 1:
        end = min(scored + (stride if scored else length), len(ids) - 1)
        start = max(0, end - length)
        window = np.zeros(length, np.int32)
        window[: end - start] = ids[start:end]  # padding on the right is seen by nothing before it
        logits = forward(window)[1][scored - start : end - start]
        losses = cross_entropy(logits, jnp.asarray(ids[scored + 1 : end + 1], jnp.int32))
        total += float(np.asarray(losses, np.float64).sum())
        scored = end
    return total / math.log(2) / characters


def loss_by_position(model: Decoder, ids: np.ndarray, length: int, bands: int) -> list[float]:
    """Nats a token in `bands` equal stretches of one window of `length` tokens from the text's beginning."""
    logits = forward_pass(model)(ids[:length])[1]
    losses = np.asarray(cross_entropy(logits, jnp.asarray(ids[1 : length + 1], jnp.int32)))
    return [round(float(part.mean()), 4) for part in np.array_split(losses, bands)]


def head_hits(model: Decoder, ids: np.ndarray, length: int, ranks: int) -> dict[str, list[list[float]]]:
    """How often a head's `ranks` best guesses hold the right token: [heads][ranks], over windows of `length`.

    "model": right is the backbone's own best token where the guess falls (what greedy decoding accepts);
    "text": right is the book's token.
    """
    forward, heads = forward_pass(model), model.config.num_draft_heads
    drafts = nnx.jit(lambda model, hidden: jax.lax.top_k(model.draft_logits(hidden), ranks)[1])
    hits: dict[str, list[np.ndarray]] = {"model": [], "text": []}
    for start in range(0, len(ids) - length, length):
        hidden, logits = forward(ids[start : start + length])
        guesses = np.asarray(drafts(model, hidden))  # [T, heads, ranks]
        best, book = np.asarray(jnp.argmax(logits, axis=-1)), ids[start + 1 : start + length + 1]
        rows = length - heads
        for name, right in (("model", best), ("text", book)):
            shifted = np.stack([right[head : head + rows] for head in range(1, heads + 1)], axis=1)
            hits[name].append(np.cumsum(guesses[:rows] == shifted[:, :, None], axis=2))
    return {name: np.concatenate(parts).mean(axis=0).round(4).tolist() for name, parts in hits.items()}


def write_on(model: Decoder, ids: np.ndarray, count: int, min_p: float, penalty: float, seed: int) -> list[int]:
    """`count` sampled ids after `ids`: temperature 1, min-p, penalty over the whole text.

    One full forward a token: slow, but it owes nothing to the caches it is to show working.
    """
    forward, rng = forward_pass(model), np.random.default_rng(seed)
    text = np.zeros(len(ids) + count, np.int32)
    text[: len(ids)] = ids
    for end in range(len(ids), len(text)):
        logits = np.asarray(forward(text)[1][end - 1], np.float64)
        seen = np.unique(text[:end])
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        chances = np.exp(logits - logits.max())
        chances[chances < min_p] = 0.0
        text[end] = rng.choice(len(chances), p=chances / chances.sum())
    return text[len(ids) :].tolist()
