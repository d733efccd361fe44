"""A model's sizes fitted to a mesh: every device gets whole heads, and as many inner columns and tokens as its
neighbours.

A head is never cut. With fewer KV heads than devices, several devices store the same KV head, each with a part of its
query heads; where the numbers do not divide, heads and inner columns of zeros fill the rest. Zeros change no sum: the
output projection has zero rows for a head of zeros, and so has the MLP for a column of zeros. Past the vocabulary, the
embeddings and the LM head have zeros too, and the decoder gives those ids logits of -inf.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tokenswift_jax.models.config import ModelConfig

ZEROS = -1


@dataclass(frozen=True)
class Fit:
    """The origin of every head and inner column of a fitted model.

    Attributes:
      config: the fitted model's configuration.
      heads: int [query heads], the checkpoint's query head, or ZEROS.
      kv_heads: int [KV heads], the checkpoint's KV head, or ZEROS.
      inner: int [inner columns], the checkpoint's column, or ZEROS.
      vocab: int [padded vocabulary], the token, or ZEROS.
      notes: for a person, one line for each size that changed.
    """

    config: ModelConfig
    heads: np.ndarray
    kv_heads: np.ndarray
    inner: np.ndarray
    vocab: np.ndarray
    notes: tuple[str, ...]

    def source(self, path: tuple[object, ...]) -> tuple[int, np.ndarray] | None:
        """The dimension of HF's tensor at a parameter's path to select from, and the rows or columns to take.

        None: the tensor stays as it is.
        """
        if "self_attn" in path:
            taken = {
                "q_proj": (0, self.heads),
                "k_proj": (0, self.kv_heads),
                "v_proj": (0, self.kv_heads),
                "o_proj": (1, self.heads),
            }.get(str(path[-2]))
            if taken is None or (taken[0] == 1 and path[-1] == "bias"):
                return None
            return taken[0], _spread(taken[1], self.config.head_dim)
        if "mlp" in path:
            dimension = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}[str(path[-2])]
            return None if dimension == 1 and path[-1] == "bias" else (dimension, self.inner)
        return (0, self.vocab) if path[0] in ("embed_tokens", "lm_head") else None


def fit(config: ModelConfig, devices: int, context: int = 1) -> Fit | None:
    """The model fitted to so many devices of the model axis, and of the context axis, which shares inner columns and
    the vocabulary too; None where it fits as it is."""
    kv_heads, group = _kv_heads(config.num_kv_heads, devices), config.group_size
    copies = max(np.bincount(kv_heads[kv_heads >= 0]).max(), 1)
    share = -(-group // copies)  # query heads of each copy of a KV head
    heads, seen = [], dict.fromkeys(range(config.num_kv_heads), 0)
    for kv_head in kv_heads.tolist():
        first = seen.get(kv_head, group)
        own = range(first, first + share)
        heads += [kv_head * group + i if kv_head >= 0 and i < group else ZEROS for i in own]
        if kv_head >= 0:
            seen[kv_head] += share
    inner = np.arange(config.intermediate_size)
    inner = np.concatenate([inner, np.full(-len(inner) % (devices * context), ZEROS)])
    padding = -config.vocab_size % (devices * context)
    vocab = np.concatenate([np.arange(config.vocab_size), np.full(padding, ZEROS)])
    fitted = replace(
        config,
        num_heads=len(heads),
        num_kv_heads=len(kv_heads),
        intermediate_size=len(inner),
        vocab_padding=padding,
    )
    if fitted == config:
        return None
    return Fit(fitted, np.asarray(heads), kv_heads, inner, vocab, _notes(config, fitted, int(copies)))


def _kv_heads(count: int, devices: int) -> np.ndarray:
    """The checkpoint's KV head of each KV head of the fitted model, ZEROS to fill the rest."""
    if count >= devices:
        return np.concatenate([np.arange(count), np.full(-count % devices, ZEROS)])
    copied = np.repeat(np.arange(count), devices // count)
    return np.concatenate([copied, np.full(devices - len(copied), ZEROS)])


def _spread(heads: np.ndarray, head_dim: int) -> np.ndarray:
    """The rows of heads: head_dim consecutive ones each."""
    rows = heads[:, None] * head_dim + np.arange(head_dim)[None, :]
    return np.where(heads[:, None] == ZEROS, ZEROS, rows).reshape(-1)


def _notes(config: ModelConfig, fitted: ModelConfig, copies: int) -> tuple[str, ...]:
    notes = []
    if copies > 1:
        notes.append(f"each of the {config.num_kv_heads} KV heads is stored on {copies} devices")
    stored = config.num_kv_heads * copies
    if fitted.num_kv_heads > stored:
        notes.append(f"{stored} KV heads are filled up to {fitted.num_kv_heads} with zeros")
    if fitted.num_heads > config.num_heads:
        notes.append(f"{config.num_heads} query heads are filled up to {fitted.num_heads} with zeros")
    if fitted.intermediate_size > config.intermediate_size:
        sizes = f"{config.intermediate_size} are filled up to {fitted.intermediate_size}"
        notes.append(f"the MLP's inner columns, {sizes} with zeros")
    if fitted.vocab_padding:
        sizes = f"{config.vocab_size} tokens is filled up to {fitted.padded_vocab}"
        notes.append(f"the vocabulary of {sizes} with zeros, which are never drawn")
    return tuple(notes)
