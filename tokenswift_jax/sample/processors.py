"""From logits to a draw: transformers' processors for every row of a step at once, without sorting the vocabulary.

Every filter keeps an upper set of scores (a token is kept iff its score >= a threshold; ties are kept), so the filters
of a row come down to one threshold, which `thresholds` finds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.parallel.residual import whole
from tokenswift_jax.sample.block_topk import kth_of, nucleus_of, search_whole, shortlist, worthwhile
from tokenswift_jax.sample.gumbel import row_keys
from tokenswift_jax.sample.order_statistics import FEW_PASSES, ONE_BIT, Search, kth_largest, nucleus_edge
from tokenswift_jax.sampling import SamplingConfig, check_vocabulary


@dataclass(frozen=True)
class Processors:
    """Which processors a compiled step holds; static. Their values are traced (`SamplingInputs`).

    Attributes:
      sample: draw with temperature, filters and noise; else take the highest score.
      suppress, min_new_tokens, penalty, top_k, top_p, min_p, eta: the processor is on.
      keep_several: `min_tokens_to_keep` is above 1.
    """

    sample: bool = True
    suppress: bool = False
    min_new_tokens: bool = False
    penalty: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    eta: bool = False
    keep_several: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingInputs:
    """The values of the processors; one set for all rows of a batch but for the keys.

    Attributes:
      temperature: [] float; 1 when greedy, so that nothing divides by 0.
      top_k: [] int32.
      top_p, min_p, eta_cutoff: [] float, probabilities.
      theta: [] float, the penalty's factor.
      window: [] int32, the penalty's window in positions; 2**31 - 1 for the whole text.
      min_tokens_to_keep: [] int32.
      suppressed: [vocab] bool, ids never drawn.
      eos: [vocab] bool, ids not drawn before `min_new_tokens` tokens.
      min_new_tokens: [] int32.
      keys: [batch, 2] uint32, `noise.row_keys`.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    eta_cutoff: jax.Array
    theta: jax.Array
    window: jax.Array
    min_tokens_to_keep: jax.Array
    suppressed: jax.Array
    eos: jax.Array
    min_new_tokens: jax.Array
    keys: jax.Array


def processors_for(config: SamplingConfig, *, min_new_tokens: int = 0, ignore_eos: bool = False) -> Processors:
    """The processors a request needs. An EOS that is ignored is an ordinary token, so `min_new_tokens` asks nothing."""
    sample = config.temperature > 0
    return Processors(
        sample=sample,
        suppress=bool(config.suppress_tokens),
        min_new_tokens=min_new_tokens > 0 and not ignore_eos,
        penalty=config.repetition_penalty != 1.0,
        top_k=sample and config.top_k is not None,
        top_p=sample and config.top_p is not None and config.top_p < 1,
        min_p=sample and config.min_p is not None and config.min_p > 0,
        eta=sample and config.eta_cutoff is not None,
        keep_several=sample and config.min_tokens_to_keep > 1,
    )


def sampling_inputs(
    config: SamplingConfig, *, vocab: int, batch: int, eos_ids: Sequence[int] = (), min_new_tokens: int = 0
) -> SamplingInputs:
    """The traced values of a request for `batch` rows; row i is text `config.sequence` + i of its seed.

    Raises:
      UserError: `suppress_tokens` does not fit the vocabulary.
    """
    check_vocabulary(config, vocab)
    real = jnp.result_type(float)

    def mask(ids: Sequence[int]) -> jax.Array:
        chosen = np.zeros(vocab, bool)
        chosen[[token for token in ids if token < vocab]] = True  # an EOS beyond the vocabulary is never drawn
        return jnp.asarray(chosen)

    return SamplingInputs(
        temperature=jnp.asarray(config.temperature or 1.0, real),
        top_k=jnp.asarray(config.top_k or 1, jnp.int32),
        top_p=jnp.asarray(config.top_p or 1.0, real),
        min_p=jnp.asarray(config.min_p or 0.0, real),
        eta_cutoff=jnp.asarray(config.eta_cutoff or 0.0, real),
        theta=jnp.asarray(config.repetition_penalty, real),
        window=jnp.asarray(config.penalty_window or 2**31 - 1, jnp.int32),
        min_tokens_to_keep=jnp.asarray(config.min_tokens_to_keep, jnp.int32),
        suppressed=mask(config.suppress_tokens),
        eos=mask(eos_ids),
        min_new_tokens=jnp.asarray(min_new_tokens, jnp.int32),
        keys=row_keys(config.seed, jnp.arange(config.sequence, config.sequence + batch, dtype=jnp.uint32)),
    )


def process(
    logits: jax.Array,
    *,
    penalised: jax.Array | None,
    generated: jax.Array,
    inputs: SamplingInputs,
    processors: Processors,
) -> jax.Array:
    """The scores of every row's draw: -inf for what may not be drawn, unnormalised log probabilities of the rest.

    In transformers' order: suppressed ids, EOS, penalty, temperature, top-k, top-p, min-p, eta_cutoff, each filter over
    what the ones before it kept. A row's result depends on that row alone. NaN logits stay NaN.

    Args:
      logits: [batch, rows, vocab], float32 or wider.
      penalised: [batch, rows, vocab] bool, the tokens in the row's window; None when the penalty is off.
      generated: [batch, rows] int32, how many new tokens precede the one to be drawn.
      inputs: the values.
      processors: which of them apply, static.

    Returns:
      [batch, rows, vocab] of `wide_dtype(logits.dtype)`.
    """
    scores = logits.astype(wide_dtype(logits.dtype))
    if processors.suppress:
        scores = jnp.where(inputs.suppressed[None, None, :], -jnp.inf, scores)
    if processors.min_new_tokens:
        early = (generated < inputs.min_new_tokens)[:, :, None]
        scores = jnp.where(inputs.eos[None, None, :] & early, -jnp.inf, scores)
    if processors.penalty:
        if penalised is None:
            raise ValueError("the penalty is on but no penalised tokens were passed")
        theta = inputs.theta.astype(scores.dtype)
        scores = jnp.where(penalised, jnp.where(scores < 0, scores * theta, scores / theta), scores)
    if not processors.sample:
        return scores
    scores = scores / inputs.temperature.astype(scores.dtype)
    if not (processors.top_k or processors.top_p or processors.min_p or processors.eta):
        return scores
    find = partial(_threshold, processors=processors)
    threshold = jax.lax.platform_dependent(
        scores,
        inputs,
        cpu=partial(find, search=ONE_BIT, listed=True),
        # Blocks of a row would be laid out anew there, and the scores of 64 rows fit its on-chip memory.
        tpu=partial(find, search=FEW_PASSES, listed=False),
        default=partial(find, search=FEW_PASSES, listed=True),
    )
    return jnp.where(scores < threshold, -jnp.inf, scores)


def draw(scores: jax.Array, noise: jax.Array | None) -> jax.Array:
    """The token of every row: the highest score + noise, ties to the lowest id; [..., vocab] -> [...] int32."""
    return draw_and_score(scores, noise)[0]


def draw_and_score(scores: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`draw`, and the score + noise of what is drawn, [...]: NaN where a row holds one, whose token means nothing."""
    perturbed = scores if noise is None else scores + noise.astype(scores.dtype)
    return jax.lax.platform_dependent(perturbed, cpu=_highest_in_two_reductions, default=_highest)


def _highest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One reduction: each of two could round what is fused into it in its own way, and they would not meet."""

    def better(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (score, token), (rival, its_token) = one, other
        higher = (score > rival) | (score != score)
        first = (score == rival) & (token < its_token)
        return jnp.where(higher, score, rival), jnp.where(higher | first, token, its_token)

    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    lowest = jnp.asarray(-jnp.inf, scores.dtype), jnp.int32(0)
    score, token = jax.lax.reduce((scores, ids), lowest, better, (scores.ndim - 1,))
    return token, score


def _highest_in_two_reductions(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On CPU argmax is a reduction that does not vectorise, 3 to 6 times slower than two that do."""
    vocab = scores.shape[-1]
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    token = jnp.min(jnp.where(scores == highest, ids, vocab), axis=-1)
    return jnp.minimum(token, vocab - 1), highest[..., 0]  # a NaN row equals nothing


def top_candidates(scores: jax.Array, noise: jax.Array | None, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best draft tokens of every row, by score + noise, ties to the lowest id, and how they rank.

    Args:
      scores: [..., vocab], from `process`.
      noise: [..., vocab] float32 at the guessed position, or None when greedy.
      k: static.

    Returns:
      tokens [..., k] int32, and [..., k] float32 log softmax of score + noise, by which nodes rank; -inf for filtered
      ones. With the noise known the perturbed score says how likely the target's draw, which adds the same noise, is
      the token; ranking by the plain probability took 8% fewer tokens an iteration at temperature 1 and small budgets.
    """
    perturbed = scores if noise is None else scores + noise.astype(scores.dtype)
    # Behind a barrier XLA keeps its top-k; slices pushed into it would make it sort the vocabulary. One barrier for
    # both results would take top-k's own pair, which XLA's partitioner for meshes cannot read.
    best, tokens = map(jax.lax.optimization_barrier, jax.lax.top_k(whole(perturbed), k))
    log_shares = best - jax.nn.logsumexp(perturbed, axis=-1, keepdims=True)
    return tokens.astype(jnp.int32), log_shares.astype(jnp.float32)


def _threshold(
    scores: jax.Array, inputs: SamplingInputs, *, processors: Processors, search: Search, listed: bool
) -> jax.Array:
    """[batch, rows, 1]: the lowest score that every filter keeps."""
    dtype = scores.dtype
    orders = _orders if listed and worthwhile(scores.shape[-1]) else _orders_of_all
    highest, floor, threshold = orders(scores, inputs, processors, search)
    if processors.min_p:
        edge = highest + jnp.log(inputs.min_p.astype(dtype))
        threshold = jnp.maximum(threshold, jnp.minimum(edge, floor))
    if processors.eta:
        weights = jnp.where(scores < threshold, 0, jnp.exp(scores - highest))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        log_total = jnp.log(total)
        gaps = jnp.where(weights > 0, highest - scores, 0)
        entropy = log_total + jnp.sum(weights * gaps, axis=-1, keepdims=True) / total
        log_eta = jnp.log(inputs.eta_cutoff.astype(dtype))
        edge = highest + log_total + jnp.minimum(log_eta, log_eta / 2 - entropy)
        threshold = jnp.maximum(threshold, jnp.minimum(edge, floor))
    return threshold


# The highest score of every row, the lowest that `min_tokens_to_keep` protects from every filter (so that one threshold
# serves all), and the lowest that top-k and top-p keep; [batch, rows, 1] each.
_Orders = tuple[jax.Array, jax.Array, jax.Array]


def _orders(scores: jax.Array, inputs: SamplingInputs, processors: Processors, search: Search) -> _Orders:
    """Found among the few highest scores, and for a row that they do not decide among all of its own."""
    if not (processors.top_k or processors.top_p or processors.keep_several):
        return _orders_of_all(scores, inputs, processors, search)
    found, exact = _orders_of_few(scores, inputs, processors, search)
    whole = partial(_orders_of_all, inputs=inputs, processors=processors, search=search)
    return search_whole(whole, scores, found, exact, search.together)


def _orders_of_all(scores: jax.Array, inputs: SamplingInputs, processors: Processors, search: Search) -> _Orders:
    """Found among all scores, whatever they are; [..., vocab]."""
    highest = jnp.max(scores, axis=-1, keepdims=True)
    floor = kth_largest(scores, inputs.min_tokens_to_keep, search) if processors.keep_several else highest
    threshold = jnp.full_like(highest, -jnp.inf)
    if processors.top_k:
        threshold = kth_largest(scores, _kept_by_top_k(inputs, processors), search)
    if processors.top_p:
        nucleus = nucleus_edge(scores, highest, threshold, inputs.top_p.astype(scores.dtype), search)
        threshold = jnp.maximum(threshold, jnp.minimum(nucleus, floor))
    return highest, floor, threshold


def _orders_of_few(
    scores: jax.Array, inputs: SamplingInputs, processors: Processors, search: Search
) -> tuple[_Orders, jax.Array]:
    """And of which rows they are exact, bool [batch, rows, 1]."""
    few = shortlist(scores)
    floor, exact = few.highest, few.highest >= few.sure
    threshold = jnp.full_like(floor, -jnp.inf)
    if processors.keep_several:
        floor, exact = kth_of(few, inputs.min_tokens_to_keep, search)
    if processors.top_k:
        threshold, is_kth = kth_of(few, _kept_by_top_k(inputs, processors), search)
        exact &= is_kth
    if processors.top_p:
        # What top-k keeps is on the list, unless it lies at its end; the weight of all else must be read.
        weighed = few.scores if processors.top_k else scores
        weights = jnp.where(weighed < threshold, 0, jnp.exp(weighed - few.highest))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        nucleus, is_nucleus = nucleus_of(few, threshold, total, inputs.top_p.astype(scores.dtype), search)
        exact &= is_nucleus & (threshold > few.sure) if processors.top_k else is_nucleus
        threshold = jnp.maximum(threshold, jnp.minimum(nucleus, floor))
    return (few.highest, floor, threshold), exact


def _kept_by_top_k(inputs: SamplingInputs, processors: Processors) -> jax.Array:
    return jnp.maximum(inputs.top_k, inputs.min_tokens_to_keep) if processors.keep_several else inputs.top_k
