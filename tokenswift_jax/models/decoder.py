"""The decoder: one config-driven Flax NNX module for Llama, Mistral, Qwen2 and Qwen3.

The module declares parameters and computation. The caller's `attention` decides how keys and values are
stored (`tokenswift_jax.kv.forward` with a cache, `models.attention.causal_attention` without one). Programs split a
decoder once (`nnx.split`) and run pure jitted functions of (parameters, state, inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.models.attention import Attention
from tokenswift_jax.models.config import AttentionSpec, ModelConfig
from tokenswift_jax.models.decoder_layer import DecoderLayer
from tokenswift_jax.models.heads import DraftHeads
from tokenswift_jax.models.layers import Linear, RMSNorm, product_of_lines, wide_dtype
from tokenswift_jax.models.rope import Rotation, rotation
from tokenswift_jax.parallel.embedding import embed_lookup
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rules import split_as
from tokenswift_jax.parallel.stages import OwnLayers, in_turn, stages_here
from tokenswift_jax.parallel.vocabulary import of_ids


class Decoder(nnx.Module):
    """Maps token ids to hidden states to logits; has draft heads if the configuration names some.

    Parameters are `embed_tokens` [V, d], `layers` (of a deep decoder the last ones: `stack` contains those before
    them, and on a mesh with stages all), `norm`, `lm_head` (None when tied), `draft_heads` (None without draft heads)
    and `draft_lm_head` (None without a draft vocabulary), a copy of the LM head's columns for the draft vocabulary that
    checkpoints do not contain; their paths are HF's names with `kernel`/`scale` for `weight`.
    """

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        scale = jnp.asarray(size**-0.5, dtype)
        shape = (config.padded_vocab, size)
        self.config = config
        self.embed_tokens = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * scale)
        self.stack: Any = nnx.data(None)  # `models.stacked` puts the first layers of a deep decoder here
        self.layers = nnx.List([DecoderLayer(config, dtype, rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(size, eps=config.rms_norm_eps, dtype=dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(size, config.padded_vocab, bias=False, dtype=dtype, rngs=rngs)
        self.draft_heads = DraftHeads(config, dtype, rngs) if config.num_draft_heads else None
        drafted = config.draft_vocab
        self.draft_lm_head = Linear(size, len(drafted), bias=False, dtype=dtype, rngs=rngs) if drafted else None

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [..., hidden_size] of token ids."""
        return embed_lookup(self.embed_tokens[...], tokens)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attention: Attention,
        carry: Any,
        numbers: Sequence[jax.Array] | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Returns the last layer's output [batch, rows, hidden_size], before the final norm, the layers' attention
        outputs to the caller (arrays [layers, ...]; None without layers), and the carry.

        tokens and positions are int32 [batch, rows]; a position is the index in the text, never a row's index. numbers
        are the layers' indices as int32 []: JAX then traces layers of the same form once. None: constants. On a mesh
        with stages, outputs and carry are those of the stage's own layers, and so are the indices.
        """
        x = replicate(self.embed(tokens))
        if stages_here() > 1:
            return in_turn(self.own_layers(positions, attention, numbers), x, carry)
        config = self.config
        angles = rotation(config.rope, config.head_dim, positions, wide_dtype(x.dtype))
        added: jax.Array | None = None
        outputs: list[Any] = []
        if self.stack is not None:
            x, added, of_stack, carry = self._scanned(x, angles, attention, carry)
            outputs.append(of_stack)
        rest = list(enumerate(self.layers, config.num_layers - len(self.layers)))
        run = _run_traced_once(angles, attention)
        for index, layer in rest:
            spec = config.attention(index)
            if numbers is None:
                x, added, output, carry = layer.halves(x, added, angles, index, spec, attention, carry)
            else:
                x, added, output, carry = run(*nnx.split(layer), numbers[index], spec, x, added, carry)
            outputs.append(_one_layer(output))
        x = x if added is None else replicate(x + added)
        return x, _concatenated(outputs), carry

    def own_layers(
        self, positions: jax.Array, attention: Attention, numbers: Sequence[jax.Array] | None = None
    ) -> OwnLayers:
        """The computation of a stage's own layers, on a mesh with stages: one for each pattern of sliding windows that
        the layers of a stage have. The arguments are those of `hidden`."""
        stages, config = stages_here(), self.config
        own = config.num_layers // stages
        windows = [config.sliding_windows[stage * own : (stage + 1) * own] for stage in range(stages)]
        patterns = list(dict.fromkeys(windows))
        given = positions, attention, numbers
        runs = [partial(self._own_layers, windows.index(pattern) * own, *given) for pattern in patterns]
        return OwnLayers(tuple(runs), tuple(map(patterns.index, windows)))

    def _own_layers(
        self,
        first: int,
        positions: jax.Array,
        attention: Attention,
        numbers: Sequence[jax.Array] | None,
        x: jax.Array,
        carry: Any,
    ) -> tuple[jax.Array, Any, Any]:
        """Runs a stage's own layers, whose settings are those of the layers from `first` on. As `hidden`, of rows x."""
        graph, params = nnx.split(self.stack)
        layers = nnx.merge(graph, jax.tree.map(lambda stacked: stacked[0], params))
        angles = rotation(self.config.rope, self.config.head_dim, positions, wide_dtype(x.dtype))
        run = _run_traced_once(angles, attention)
        added: jax.Array | None = None
        outputs: list[Any] = []
        for index, layer in enumerate(layers):
            spec = self.config.attention(first + index)
            if numbers is None:
                x, added, output, carry = layer.halves(x, added, angles, index, spec, attention, carry)
            else:
                x, added, output, carry = run(*nnx.split(layer), numbers[index], spec, x, added, carry)
            outputs.append(_one_layer(output))
        return (x if added is None else replicate(x + added)), _concatenated(outputs), carry

    def _scanned(
        self, x: jax.Array, angles: Rotation, attention: Attention, carry: Any
    ) -> tuple[jax.Array, jax.Array, Any, Any]:
        """Runs the layers of `stack`, group after group. Returns the stream in two summands, the layers' attention
        outputs to the caller, and the carry."""
        graph, params = nnx.split(self.stack)
        size, groups = len(self.stack), jax.tree.leaves(params)[0].shape[0]

        def group(state: Any, part: Any) -> Any:
            (x, added, carry), (first, params) = state, part
            run, outputs = _run_traced_once(angles, attention), []
            for index, layer in enumerate(nnx.merge(graph, params)):
                spec = self.config.attention(index)  # that of the layer in every group
                x, added, output, carry = run(*nnx.split(layer), first + index, spec, x, added, carry)
                outputs.append(_one_layer(output))
            return (x, added, carry), _concatenated(outputs)

        first = size * jnp.arange(groups, dtype=jnp.int32)
        (x, added, carry), outputs = jax.lax.scan(group, (x, jnp.zeros_like(x), carry), (first, params))
        return x, added, jax.tree.map(lambda output: output.reshape(-1, *output.shape[2:]), outputs), carry

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., vocab] in float32 (or wider) from the last layer's output."""
        return self.project(self.norm(hidden))

    def logits_and_guesses(self, hidden: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
        """Logits [batch, rows, vocab] from the last layer's output [batch, rows, hidden_size], and those of the first
        `heads` draft heads, [batch, rows, heads, vocab], from one product with the LM head.

        Sequential heads and heads with a draft vocabulary have products of their own.
        """
        assert self.draft_heads is not None
        batch, rows, size = hidden.shape
        outputs = self.draft_heads(self.heads_input(hidden), heads)
        lines = jnp.concatenate([self.norm(hidden), outputs.reshape(batch, rows * heads, size)], axis=1)
        scores = self.project(lines)
        return scores[:, :rows], scores[:, rows:].reshape(batch, rows, heads, -1)

    def heads_input(self, hidden: jax.Array) -> jax.Array:
        """The draft heads' input, from the last layer's output: that output, normalised for Medusa heads."""
        return self.norm(hidden) if self.config.draft_head_type == "medusa" else hidden

    def draft_outputs(self, hidden: jax.Array, following: jax.Array | None = None) -> jax.Array:
        """LM-head inputs [..., heads, hidden_size] of all draft heads from the last layer's output [..., hidden_size].

        following is int32 [..., heads], the tokens after the row's own: head i guesses the one after following[..., i]
        and, if sequential, reads following[..., i]. Other heads read none of them and need no following.

        Raises:
          ValueError: sequential heads without following, or following for another number of heads.
        """
        assert self.draft_heads is not None
        if self.config.draft_head_type != "sequential":
            return self.draft_heads(self.heads_input(hidden))
        if following is None or following.shape != (*hidden.shape[:-1], self.config.num_draft_heads):
            given = None if following is None else following.shape
            wanted = (*hidden.shape[:-1], self.config.num_draft_heads)
            raise ValueError(f"sequential draft heads need following tokens of shape {wanted}, not {given}")
        return self.draft_heads(hidden, embedded=self.embed(following))

    def draft_logits(self, hidden: jax.Array, following: jax.Array | None = None) -> jax.Array:
        """Logits [..., heads, vocab] of `draft_outputs`, from one matmul; -inf outside the draft vocabulary.

        Raises ValueError as `draft_outputs` does.
        """
        return self.project_drafts(self.draft_outputs(hidden, following))

    def project_drafts(self, outputs: jax.Array) -> jax.Array:
        """`score_drafts` [..., vocab] with -inf for the tokens outside the draft vocabulary."""
        scores, drafted = self.score_drafts(outputs), self.config.draft_vocab
        if drafted is None:
            return scores
        missing = jnp.full((*scores.shape[:-1], 1), -jnp.inf, scores.dtype)
        places = jnp.asarray(drafted.places(self.config.padded_vocab))
        every = jnp.concatenate([replicate(scores), missing], axis=-1)[..., places]
        return split_as(every, *["rows"] * (every.ndim - 1), "vocab")

    def score_drafts(self, outputs: jax.Array) -> jax.Array:
        """Logits [..., draft_vocab] of the draft heads' outputs in float32 (or wider), over the draft vocabulary."""
        drafted = self.config.draft_vocab
        if drafted is None:
            return self.project(outputs)
        outputs, wide = replicate(outputs), wide_dtype(outputs.dtype)
        if self.draft_lm_head is not None:
            return self.draft_lm_head.product(outputs, wide)
        ids = jnp.asarray(drafted.ids)  # training: the copy would not follow the LM head
        if self.lm_head is None:
            lines = embed_lookup(self.embed_tokens[...], ids)
            return jnp.einsum("...d,vd->...v", outputs, lines, preferred_element_type=wide)
        columns = of_ids(self.lm_head.kernel[...], ids)
        return jnp.einsum("...d,dv->...v", outputs, columns, preferred_element_type=wide)

    def project(self, normed: jax.Array) -> jax.Array:
        """Applies the LM head: logits [..., vocab] in float32 (or wider); -inf past the vocabulary."""
        wide = wide_dtype(normed.dtype)
        # The draft heads' output is sharded. Without `replicate`, XLA computes this matmul in steps, and each of them
        # waits for a neighbouring device.
        normed = replicate(normed)
        if self.lm_head is None:
            logits = product_of_lines(normed, self.embed_tokens[...], wide)
        else:
            logits = self.lm_head.product(normed, wide)
        if not self.config.vocab_padding:
            return logits
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jnp.where(ids < self.config.vocab_size, logits, jnp.asarray(-jnp.inf, wide))


def _run_traced_once(angles: Rotation, attention: Attention) -> Callable[..., Any]:
    """A layer's `halves` as a function of the layer's graph, parameters and index, and of the other arguments. JAX
    traces and lowers it once for all layers of the same form; XLA puts its body in the place of every call."""

    @partial(jax.jit, static_argnums=(0, 3))
    def run(
        graph: nnx.GraphDef,
        params: Any,
        index: jax.Array,
        spec: AttentionSpec,
        x: jax.Array,
        added: jax.Array | None,
        carry: Any,
    ) -> tuple[jax.Array, jax.Array, Any, Any]:
        return nnx.merge(graph, params).halves(x, added, angles, index, spec, attention, carry)

    return run


def _one_layer(output: Any) -> Any:
    """A layer's output as that of a list of layers."""
    return jax.tree.map(lambda array: array[None], output)


def _concatenated(outputs: Sequence[Any]) -> Any:
    """The outputs of several lists of layers as that of one."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs) if outputs else None
