"""The margin: how far an emitted token is from being the draw. The audit reports it for positions where it is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.parallel.vocabulary import scores_of
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.params import SequenceParams, without_filters
from tokenswift_jax.sample.processors import process

# In logits: the margin of a token that no change makes the draw (a suppressed id).
MARGIN_LIMIT = 2.0**20
_SMALLEST = 2.0**-24
_STEPS = 24


def margin(
    logits: jax.Array,
    emitted: jax.Array,
    noise: jax.Array | None,
    *,
    penalised: jax.Array,
    generated: jax.Array,
    settings: SequenceParams,
    features: SamplingFeatures,
) -> jax.Array:
    """The smallest uniform change of the logits that makes each emitted token the draw.

    A change of delta moves every logit by delta, before the processors, so it moves filter thresholds too. The search
    tries two changes. The first moves the emitted token up and every other down, which raises it above others and past
    filters. The second moves the tokens that would be drawn before it down and all others up, which also makes the
    filters drop those tokens. The search doubles delta, then bisects; where acceptance is not monotone in delta (a
    penalty scales logits differently), it finds the edge below the first power of two that suffices.

    Args:
      logits: [draws, vocab], the raw logits.
      emitted: [draws] int32.
      noise: [draws, vocab] float32, or None when greedy.
      penalised: [draws, vocab] bool, as in `process`.
      generated: [draws] int32, as in `process`.
      settings: the settings of the row of these draws, batch 1.
      features: the sampling features of the row, static.

    Returns:
      [draws] float32, in logits: 0 where the emitted token is the draw, at most `MARGIN_LIMIT`; always finite for
      finite logits, to a relative 1e-7 and to the resolution of the logits.
    """
    logits = logits.astype(wide_dtype(logits.dtype))
    ids = jnp.arange(logits.shape[1], dtype=jnp.int32)
    own = ids[None, :] == emitted[:, None]

    def scores(logits: jax.Array, settings: SequenceParams) -> jax.Array:
        return process(
            logits[None],
            penalised=penalised[None],
            generated=generated[None],
            settings=settings,
            features=features,
        )[0]

    unfiltered = scores(logits, without_filters(settings))
    perturbed = unfiltered if noise is None else unfiltered + noise.astype(logits.dtype)
    ahead = perturbed >= scores_of(perturbed, emitted)[:, None]
    signs = [jnp.where(up, 1, -1).astype(logits.dtype) for up in (own, own | ~ahead)]

    def accepted(delta: jax.Array) -> jax.Array:
        first, second = (draw(scores(logits + sign * delta[:, None], settings), noise) == emitted for sign in signs)
        return first | second

    zero = jnp.zeros(emitted.shape, logits.dtype)
    limit = jnp.asarray(MARGIN_LIMIT, logits.dtype)

    def widen(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, done = carry
        low = jnp.where(done, low, high)
        high = jnp.where(done, high, jnp.maximum(2 * high, jnp.asarray(_SMALLEST, high.dtype)))
        return low, high, done | accepted(high)

    def open_rows(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, high, done = carry
        return jnp.any(~done & (high < limit))

    low, high, done = jax.lax.while_loop(open_rows, widen, (zero, zero, accepted(zero)))

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = accepted(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    searching = jnp.any(done & (high > 0))
    _, high = jax.lax.fori_loop(0, jnp.where(searching, _STEPS, 0), halve, (low, high))
    return jnp.where(done, high, limit).astype(jnp.float32)
