"""Tiny seeded decoders and what the compiled programs take, real or as shapes only."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from tests.engine_fixture import blank_state, layout_of, settings_of
from tokenswift_jax.model import Model
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.state import StepInputs

BASE = {
    "model_type": "mistral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 131072,
    "sliding_window": None,
    "medusa_heads": 3,
}


def tiny_config(**fields) -> ModelConfig:
    """BASE with some fields replaced."""
    return model_config(BASE | fields)


def tiny_model(config: ModelConfig, dtype=jnp.float32, seed: int = 0) -> Model:
    """A decoder with random parameters, the draft heads' included, and no tokenizer."""
    decoder = Decoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(seed))
    if decoder.draft_heads is not None:
        for index, head in enumerate(decoder.draft_heads.heads):
            kernel = head.linear.kernel[...]
            noise = jax.random.normal(jax.random.key(seed + index + 1), kernel.shape, kernel.dtype)
            head.linear.kernel[...] = noise * jnp.asarray(0.3 * kernel.shape[0] ** -0.5, kernel.dtype)
    graph, params = nnx.split(decoder)
    return Model(
        path=Path("tiny"),
        config=config,
        tokenizer=None,
        generation_config={},
        graphdef=graph,
        params=params,
        dtype=str(jnp.dtype(dtype)),
        eos_token_ids=(),
        rope_override=None,
    )


def abstract_model(config: ModelConfig, dtype=jnp.float32):
    """(graph, parameters as shapes)."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))))


def abstract_call(plan: Plan, params, sampling: SamplingConfig, batch: int, capacity: int):
    """(inputs, state) of `loop.run_chunk` as shapes: nothing of the cache's size is allocated."""
    dtype = jax.tree.leaves(params)[0].dtype
    return jax.eval_shape(lambda p: _call(plan, p, sampling, batch, capacity, dtype), params)


def _call(plan, params, sampling, batch, capacity, dtype):
    assert features_of(sampling) == plan.features
    config, state = plan.config, blank_state(layout_of(plan, dtype, capacity), batch)
    return StepInputs(params, settings_of(sampling, vocab=config.vocab_size, batch=batch)), state
