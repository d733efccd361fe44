"""Tiny models made in memory, for tests of decoding that need no files.

A `successor_model` writes text that its draft heads can foresee, so that drafts are accepted at every depth, while its
attention still makes every draw depend on the whole context. An untrained random model would accept next to nothing,
and a test of speculation on it would test little.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.checkpoint import state_tensors
from tokenswift_jax.checkpoint.load import abstract_decoder
from tokenswift_jax.model import Model
from tokenswift_jax.models.config import DraftHeadType, ModelConfig, RopeConfig
from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.models.node_sets import NO_NODE_SETS, NodeSets

VOCAB, HEADS = 48, 3
_ROPE = RopeConfig("default", 100.0, *[None] * 8)


def config(
    vocab: int,
    layers: int = 2,
    heads: int = HEADS,
    windows: tuple[int | None, ...] | None = None,
    head_type: DraftHeadType = "chained",
    node_sets: NodeSets = NO_NODE_SETS,
):
    """Four query heads on two key/value heads; as wide as the vocabulary is, so that embeddings can be orthogonal."""
    size = -(-vocab // 8) * 8
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=size,
        intermediate_size=2 * size,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope=_ROPE,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=windows or (None,) * layers,
        num_draft_heads=heads,
        draft_head_type=head_type,
        node_sets=node_sets,
    )


def successor_model(
    vocab: int = VOCAB,
    *,
    layers: int = 2,
    heads: int = HEADS,
    windows: tuple[int | None, ...] | None = None,
    certainty: float = 4.5,
    context: float = 0.55,
    cycle: int | None = None,
    head_type: DraftHeadType = "chained",
    node_sets: NodeSets = NO_NODE_SETS,
    dtype: type = np.float32,
    seed: int = 0,
) -> Model:
    """A model whose tokens follow a fixed permutation unless noise or context says otherwise.

    Embeddings are orthogonal, the LM head scores token v by how much the hidden state looks like v's predecessor, and
    draft head i turns the embedding of a token into that of its i-th successor; a sequential one makes its hidden
    state look like the token it sees. Attention and MLP are random and move
    the hidden state by about `context` of its length; `certainty` is the successor's logit without them. The
    permutation is made of cycles of `cycle` tokens, by default a single one.
    """
    shape = config(vocab, layers, heads, windows, head_type, node_sets)
    rng = np.random.default_rng(seed)
    size = shape.hidden_size
    orthogonal = np.linalg.qr(rng.normal(size=(size, size)))[0][:vocab]
    cycles = rng.permutation(vocab).reshape(-1, cycle or vocab)
    successor = np.empty(vocab, np.int64)
    successor[cycles] = np.roll(cycles, -1, axis=1)
    step = orthogonal.T @ (orthogonal[successor] - orthogonal) / size**0.5
    lm_head = np.empty_like(orthogonal)
    lm_head[successor] = orthogonal * (certainty / size**0.5)

    def value(path: tuple, dims: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "scale":
            return np.ones(dims)
        if path == ("embed_tokens",):
            return orthogonal
        if path[0] == "lm_head":
            return lm_head.T + rng.normal(0, 0.3 / size**0.5, dims)
        if "draft_heads" in path:
            return step if head_type == "chained" else _sees_its_token(path, size)
        scale = {"q_proj": 3.0, "o_proj": 2 * context / size**0.5, "down_proj": 2 * context / size**0.5}
        return rng.normal(0, scale.get(path[-2], 1.0) * dims[0] ** -0.5, dims)

    return model_of(shape, value, dtype)


def _sees_its_token(path: tuple, size: int) -> np.ndarray:
    """A weight of a sequential head that adds about 3 max(z, 0)^2 of the token's normed embedding z: enough to tell it.

    The hidden state it is given plays in a little; every head adds 4 times what the one before it did.
    """
    index, name = path[2], path[3]
    if name == "down_proj":
        return np.eye(size) * 0.3 * 4.0**index
    token = np.eye(size) * (3.0 if name == "gate_proj" else 1.0)
    rng = np.random.default_rng(index)  # its own, so that the backbone does not depend on the heads
    return np.concatenate([rng.normal(0, 0.3 / size**0.5, (size, size)), token])


def random_model(
    vocab: int,
    *,
    layers: int = 1,
    heads: int = HEADS,
    spread: float = 1.5,
    head_type: DraftHeadType = "chained",
    dtype: type = np.float32,
    seed: int = 0,
) -> Model:
    """A model whose every weight is random; logits of a row spread by about `spread`."""
    shape = config(vocab, layers, heads, head_type=head_type)
    rng = np.random.default_rng(seed)

    def value(path: tuple, dims: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "scale":
            return rng.uniform(0.5, 1.5, dims)
        if path[0] == "lm_head":
            return rng.normal(0, spread * dims[0] ** -0.5, dims)
        return rng.normal(0, 1.0 if path == ("embed_tokens",) else dims[0] ** -0.5, dims)

    return model_of(shape, value, dtype)


def with_draft_vocab(model: Model, ids) -> Model:
    """The same model, whose heads score these tokens alone."""
    shape = replace(model.config, draft_vocab=DraftVocab.of(ids))
    known = dict(nnx.to_flat_state(model.params))

    def value(path: tuple, dims: tuple[int, ...]) -> np.ndarray:
        if path == ("draft_lm_head", "kernel"):
            return np.asarray(known[("lm_head", "kernel")][...])[:, shape.draft_vocab.ids]
        return np.asarray(known[path][...])

    return model_of(shape, value, np.dtype(model.dtype).type, model.eos_token_ids)


def model_of(shape: ModelConfig, value, dtype: type = np.float32, eos_token_ids: tuple[int, ...] = ()) -> Model:
    """The model whose parameter at each path is `value(path, dims)`."""
    graph, state = nnx.split(abstract_decoder(shape, jnp.dtype(dtype)))
    params = nnx.from_flat_state(
        [
            (path, param.replace(jnp.asarray(value(path, param.shape), dtype)))
            for path, param in nnx.to_flat_state(state)
        ]
    )
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)), "float64 models need enable_x64"
    return Model(Path("in-memory"), shape, None, {}, graph, params, np.dtype(dtype).name, eos_token_ids, None)


def with_eos(model: Model, *tokens: int) -> Model:
    """The same model, whose texts these tokens end."""
    return replace(model, eos_token_ids=tokens)


def poisoned(model, token):
    """The model, whose hidden states are NaN wherever it reads `token`."""

    def spoil(path, param):
        return param.replace(param[...].at[token].set(np.nan)) if path == ("embed_tokens",) else param

    flat = [(path, spoil(path, param)) for path, param in nnx.to_flat_state(model.params)]
    return replace(model, params=nnx.from_flat_state(flat))


def weights(model: Model) -> dict[str, np.ndarray]:
    """The parameters by HF's names, in HF's layout, float64."""
    return {tensor.name: tensor.values().astype(np.float64) for tensor in state_tensors(model.params)}
