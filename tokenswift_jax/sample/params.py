"""The settings of every row of a batch as arrays: how tokens are drawn and where texts end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.commit_text.reference import WORD, contains
from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.request import Request, check_drawable
from tokenswift_jax.sample.gumbel import row_keys
from tokenswift_jax.sampling import SamplingConfig

WHOLE_TEXT = 2**31 - 1  # a penalty window without a limit


@pytree
class SequenceParams:
    """The settings of a batch, one entry per row; the first axis of every array is the batch.

    Attributes:
      keys: uint32 [batch, 2], `gumbel.row_keys` of the row's seed and sequence.
      temperature: float [batch]; 0 is greedy, and then every filter below is off.
      top_k: int32 [batch]; 0 is off.
      top_p: float [batch]; 1 is off.
      min_p: float [batch]; 0 is off.
      eta_cutoff: float [batch]; 0 is off.
      min_tokens_to_keep: int32 [batch].
      repetition_penalty: float [batch]; 1 is off.
      penalty_window: int32 [batch], positions; WHOLE_TEXT for all of them.
      suppressed: uint32 [batch, words], the set of ids that are never drawn (`token_set`).
      eos: uint32 [batch, words], the set of ids that end the text.
      min_new_tokens: int32 [batch], number of new tokens before which no EOS is drawn.
      prompt_length: int32 [batch].
      stop_length: int32 [batch], length in tokens, prompt included, at which the text ends.
    """

    keys: jax.Array = axes("batch", "key_words")
    temperature: jax.Array = axes("batch")
    top_k: jax.Array = axes("batch")
    top_p: jax.Array = axes("batch")
    min_p: jax.Array = axes("batch")
    eta_cutoff: jax.Array = axes("batch")
    min_tokens_to_keep: jax.Array = axes("batch")
    repetition_penalty: jax.Array = axes("batch")
    penalty_window: jax.Array = axes("batch")
    suppressed: jax.Array = axes("batch", "words")
    eos: jax.Array = axes("batch", "words")
    min_new_tokens: jax.Array = axes("batch")
    prompt_length: jax.Array = axes("batch")
    stop_length: jax.Array = axes("batch")

    @property
    def ngram_lag(self) -> jax.Array:
        """The number of tokens before the root at which a 4-gram must end to enter the n-gram table, int32 [batch].

        It equals the penalty window, since tokens inside it are unlikely to be drawn again; 0 without a bounded window.
        """
        bounded = (self.repetition_penalty != 1) & (self.penalty_window < WHOLE_TEXT)
        return jnp.where(bounded, self.penalty_window, jnp.int32(0))


def ngram_lag_of(sampling: SamplingConfig) -> int:
    """`SequenceParams.ngram_lag` of one text, on the host."""
    return sampling.penalty_window or 0 if sampling.repetition_penalty != 1 else 0


def sequence_params(requests: Sequence[Request], vocab: int) -> SequenceParams:
    """The settings of a batch; row i has those of request i.

    Raises:
      UserError: the settings of a request leave nothing to draw (`check_drawable`).
    """
    configs = [request.sampling for request in requests]
    for request in requests:
        check_drawable(request, vocab)
    real = jnp.result_type(float)

    def column(values: Iterable[float], dtype: jnp.dtype | type) -> jax.Array:
        return jnp.asarray(np.asarray(list(values), jnp.dtype(dtype)))

    def filtered(neutral: float, name: str) -> list[float]:
        """The values of a filter, neutral for a greedy row: it takes the likeliest token, which no filter removes."""
        values = (getattr(config, name) if config.temperature else None for config in configs)
        return [neutral if value is None else value for value in values]

    return SequenceParams(
        keys=row_keys(*(column((getattr(c, name) for c in configs), jnp.uint32) for name in ("seed", "sequence"))),
        temperature=column((config.temperature for config in configs), real),
        top_k=column(filtered(0, "top_k"), jnp.int32),
        top_p=column(filtered(1.0, "top_p"), real),
        min_p=column(filtered(0.0, "min_p"), real),
        eta_cutoff=column(filtered(0.0, "eta_cutoff"), real),
        min_tokens_to_keep=column(filtered(1, "min_tokens_to_keep"), jnp.int32),
        repetition_penalty=column((config.repetition_penalty for config in configs), real),
        penalty_window=column((config.penalty_window or WHOLE_TEXT for config in configs), jnp.int32),
        suppressed=jnp.asarray(np.stack([token_set(config.suppress_tokens, vocab) for config in configs])),
        eos=jnp.asarray(np.stack([token_set(request.eos_token_ids, vocab) for request in requests])),
        min_new_tokens=column((request.min_new_tokens for request in requests), jnp.int32),
        prompt_length=column((len(request.prompt_ids) for request in requests), jnp.int32),
        stop_length=column((len(r.prompt_ids) + r.max_new_tokens for r in requests), jnp.int32),
    )


def without_filters(settings: SequenceParams) -> SequenceParams:
    """The same settings with top-k, top-p, min-p and eta_cutoff off."""
    zeros = jnp.zeros_like(settings.min_p)
    return replace(
        settings,
        top_k=jnp.zeros_like(settings.top_k),
        top_p=jnp.ones_like(settings.top_p),
        min_p=zeros,
        eta_cutoff=zeros,
    )


def token_set(ids: Iterable[int], vocab: int) -> np.ndarray:
    """A set of token ids as uint32 [ceil(vocab / 32)]: id i is bit i % 32 of word i // 32. The set leaves out ids
    beyond the vocabulary, which are never drawn."""
    words = np.zeros(-(-vocab // WORD), np.uint32)
    for token in ids:
        if token < vocab:
            words[token // WORD] |= np.uint32(1) << np.uint32(token % WORD)
    return words


def members(sets: jax.Array, vocab: int) -> jax.Array:
    """Whether each set, uint32 [..., words], contains each id: bool [..., vocab]."""
    shifts = jax.lax.broadcasted_iota(jnp.uint32, (*sets.shape, WORD), sets.ndim)
    spread = (sets[..., None] >> shifts) & jnp.uint32(1)
    return spread.reshape(*sets.shape[:-1], -1)[..., :vocab] != 0


def subset(sets: jax.Array, ids: jax.Array) -> jax.Array:
    """The sets uint32 [batch, words] over other numbers: number i is in a result iff `ids[i]` is in the set."""
    count = ids.shape[0]
    words = -(-count // WORD)
    inside = contains(sets, jnp.broadcast_to(ids, (sets.shape[0], count)))
    bits = jnp.pad(inside, ((0, 0), (0, words * WORD - count))).reshape(-1, words, WORD)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)
    return jnp.sum(bits.astype(jnp.uint32) << shifts[None, None, :], axis=-1, dtype=jnp.uint32)
