"""Expected tokens per iteration, predicted without generating anything with the drafts.

Drafting changes no draw: with the same seed, every tree, schedule and mode writes the text that plain decoding writes.
So the target writes once, and a replay runs every iteration along that text. The replay builds the tree as decoding
does (the plan's drafter, shared noise, penalty and node budget); instead of a verify forward, the text itself decides
the drawn path. The hidden states come from one teacher-forced pass.

The replay leaves out the draft cache. It is valid while the draft cache can contain everything committed
(`Replay.predict` refuses a longer text under `partial`). Beyond that, drafts see less than the full cache, and decoding
accepts fewer of them. In narrow dtypes a hidden state computed 256 rows at a time differs in its last bits, so a
candidate may differ now and then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tokenswift_jax.api import generate
from tokenswift_jax.audit.teacher import teacher_forced
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK, empty_cache
from tokenswift_jax.model import Model
from tokenswift_jax.parallel.rules import split_as
from tokenswift_jax.parallel.vocabulary import newest_positions
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.candidates import DraftSampler
from tokenswift_jax.speculate.drafter import CommittedText, Outcome, Roots, StateSizes
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step.accept import accept
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.step.state import StepInputs


@dataclass(frozen=True)
class Continuations:
    """The target's own continuations of held-out prompts.

    Attributes:
      sampling: the settings of the draws; text i is number `sampling.sequence` + i of the seed.
      prompts: the token ids of the prompts, at least one each.
      tokens: the token ids written after each prompt, including an EOS.
    """

    sampling: SamplingConfig
    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    @property
    def texts(self) -> list[list[int]]:
        """The token ids of each prompt and its continuation together."""
        return [[*prompt, *written] for prompt, written in zip(self.prompts, self.tokens, strict=True)]


def write_continuations(
    model: Model, prompts: list[list[int]], sampling: SamplingConfig, max_new_tokens: int
) -> Continuations:
    """Writes the target's own continuations by plain decoding; an EOS ends one early."""
    plain = SpeculationConfig(mode="autoregressive")
    results = generate(model, prompts, sampling, plain, max_new_tokens=max_new_tokens, min_new_tokens=0, stop=())
    return Continuations(
        sampling, tuple(tuple(prompt) for prompt in prompts), tuple(tuple(result.token_ids) for result in results)
    )


@dataclass(frozen=True)
class Prediction:
    """The acceptance of a plan's iterations along the continuations.

    Attributes:
      expected_tokens: tokens per iteration over all texts, NaN without iterations. It equals `mean_accepted_length` of
        the same generation, where the end of a text also cuts its last iteration.
      iterations, tokens: number of iterations and of tokens, without the first token of each text, which prefill
        draws.
      accepted_per_position: entry d counts the iterations that accept a draft at depth d + 1.
    """

    expected_tokens: float
    iterations: int
    tokens: int
    accepted_per_position: tuple[int, ...]


class Replay:
    """Continuations and the target's hidden states, along which it replays iterations.

    Attributes:
      continuations: the texts.
      tokens: int32 [texts, capacity], 0 past a text's end.
      hidden: [texts, capacity, hidden_size], the last layer's output before the final norm.
      starts, ends: int32 [texts], lengths of the prompts and of the texts.
      features: the sampling features that the settings need.
      inputs: the inputs of a step that decodes the texts as one batch.
    """

    def __init__(self, model: Model, continuations: Continuations) -> None:
        texts, sampling = continuations.texts, continuations.sampling
        self.continuations = continuations
        self.hidden = jnp.concatenate([part for _, part in teacher_forced(model, texts)], axis=1)
        tokens = np.zeros((len(texts), self.hidden.shape[1]), np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        self.tokens = jnp.asarray(tokens)
        self.starts = jnp.asarray([len(prompt) for prompt in continuations.prompts], jnp.int32)
        self.ends = jnp.asarray([len(text) for text in texts], jnp.int32)
        self.features = features_of(sampling)
        requests = batch_of(continuations.prompts, sampling, max_new_tokens=0)
        settings = sequence_params(requests, model.config.padded_vocab)
        self.inputs = StepInputs(model.params, replace(settings, stop_length=self.ends))
        self._model = model

    def predict(self, speculation: SpeculationConfig) -> Prediction:
        """Predicts the acceptance of `generate` with this speculation on the texts.

        Raises:
          UserError: a mode without prediction (`auto`, `selfspec`, `autoregressive`) or schedule `auto`; missing
            heads; under `partial` a text longer than the draft cache.
        """
        program = _program(self._model.graphdef, self._plan(speculation))
        histogram = np.asarray(program(self.inputs, self.tokens, self.hidden))
        iterations = int(histogram.sum())
        accepted = int(histogram @ np.arange(len(histogram)))
        # The last token of a text's last iteration counts as drawn, not as accepted, as in `stats.acceptance`.
        tokens = accepted + iterations
        expected = tokens / iterations if iterations else float("nan")
        at_least = np.cumsum(histogram[::-1])[::-1][1:]
        return Prediction(expected, iterations, tokens, tuple(np.trim_zeros(at_least, "b").tolist()))

    def _plan(self, speculation: SpeculationConfig) -> Plan:
        mode, schedule = speculation.mode, speculation.schedule
        if mode not in ("tokenswift", "medusa", "ngram") or (mode == "tokenswift" and schedule == "auto"):
            raise UserError(
                f"mode {mode!r} with schedule {schedule!r} cannot be predicted; "
                "name tokenswift with partial or fused, medusa or ngram"
            )
        plans = speculative_plans(self._model.config, speculation, self.features, jax.default_backend())
        longest = max(map(len, self.continuations.texts))
        if schedule == "partial" and longest > speculation.draft_cache:
            raise UserError(
                f"a text of {longest} tokens exceeds the draft cache of {speculation.draft_cache}, beyond which "
                "schedule partial cannot be predicted; give shorter prompts and continuations or a larger draft cache"
            )
        drafter = plans[0].plan.drafter.teacher_forced
        assert drafter is not None, f"mode {mode} has no replay"
        return replace(plans[0].plan, drafter=drafter)


@functools.cache
def _program(graph: nnx.GraphDef, plan: Plan) -> Callable:
    """The jitted function (inputs, tokens, hidden) -> int32 [depth + 1], the iterations that accept 0, 1, .. drafts."""
    drafter, of_root = plan.drafter, plan.drafter.heads_depth == 2

    def run(inputs: StepInputs, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
        model, batch, config = nnx.merge(graph, inputs.params), tokens.shape[0], plan.config
        settings = inputs.sequence
        start, ends = settings.prompt_length, settings.stop_length
        ahead = jnp.arange(1, plan.depth + 2, dtype=jnp.int32)[None, :]
        # No drafter of a replay reads K/V or queries.
        cache = empty_cache(config, batch, BLOCK, hidden.dtype)
        query = jnp.zeros((config.num_layers, batch, config.num_heads, config.head_dim), hidden.dtype)

        def committed(length: jax.Array) -> CommittedText:
            return CommittedText(config, tokens, length, settings.ngram_lag, cache, query)

        def iteration(carry: tuple) -> tuple:
            length, last_positions, own, histogram = carry
            noise = None
            if plan.features >= SamplingFeatures.SAMPLED:
                noise = gumbel_noise(settings.keys, length[:, None] + ahead, config.padded_vocab)
            shared = noise if plan.shared_noise else None
            ranking = DraftSampler(length + 1, last_positions, shared, settings, plan.features)
            root = take(tokens, length[:, None])[:, 0]
            read = take(hidden, (length if of_root else length - 1)[:, None])[:, 0]
            roots = Roots(config, plan.tree, root, length, read, cache, ranking, prepared=())
            tree, own, _ = drafter.propose(model, roots, own)
            # On the true path the draw of a tree row is the text's next token; off that path, draws decide nothing.
            place = length[:, None] + tree.depths + 1
            draws = jnp.where(place < ends[:, None], take(tokens, place), jnp.int32(-1))
            acceptance = accept(tree, draws, plan.depth)
            count = jnp.clip(acceptance.accepted + 1, 0, ends - (length + 1))  # 0 once a text has ended
            accepted = jnp.where(count > 0, count - 1, jnp.int32(plan.depth + 1))
            histogram = histogram.at[accepted].add(1, mode="drop")
            after = length + count
            last_positions = newest_positions(last_positions, tokens, length + 1, after + 1, plan.depth + 1)
            own = drafter.observe(own, Outcome(committed(after), length, cache.stacks, plan.tree, tree, acceptance))
            return after, last_positions, own, histogram

        last_positions = penalty.last_positions(tokens, start + 1, config.padded_vocab)
        last_positions = split_as(last_positions, "rows", "vocab")
        sizes = StateSizes(config, tokens.shape[1], hidden.dtype)
        own = tuple(part.catch_up(part.empty(sizes, batch), committed(start)) for part in drafter.parts)
        with exact_products(hidden.dtype):
            carry = (start, last_positions, own, jnp.zeros((plan.depth + 1,), jnp.int32))
            return lax.while_loop(lambda carry: (carry[0] + 1 < ends).any(), iteration, carry)[-1]

    return jax.jit(run)


def take(values: jax.Array, places: jax.Array) -> jax.Array:
    """Entries [batch, count, ..] of values [batch, capacity, ..] at places [batch, count], clipped to the capacity."""
    index: Any = places.reshape(*places.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1, mode="clip")
