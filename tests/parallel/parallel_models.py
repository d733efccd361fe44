"""A tiny decoder with a KV head for each of eight devices, and what its first chunk takes."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tests.engine_fixture import blank_state, layout_of, settings_of
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.stacked import Groups, stacked
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate import plans
from tokenswift_jax.step.state import StepInputs

FEW = 40  # records of a chunk: enough that the draft cache of 24 selects
SAMPLING = SamplingConfig(temperature=1.0, min_p=0.05, repetition_penalty=1.1, seed=3)
CAPACITY = 256


def model_of(kv_heads=8, join=False, stack=False, windows=None):
    """(configuration, graph, parameters); `join` as decoding on a GPU has them, `stack` as deep decoders are,
    `windows` one entry per layer."""
    config = model_config(
        {
            "model_type": "qwen2",  # its projections have biases
            "vocab_size": 512,  # so many that devices could share the words of a set of ids
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "num_key_value_heads": kv_heads,
            "head_dim": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        }
    )
    config = dataclasses.replace(config, num_draft_heads=3, draft_head_type="chained")
    config = dataclasses.replace(config, sliding_windows=windows or config.sliding_windows)
    decoder = Decoder(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0))
    decoder = joined(decoder) if join else decoder
    return config, *nnx.split(stacked(decoder, Groups(2, 1)) if stack else decoder)


def first_call(schedule, join=False, stack=False, sampling=SAMPLING, windows=None):
    """(graph, plan, inputs, state) of a text of one token; schedule `autoregressive` or one of tokenswift's."""
    config, graph, params = model_of(join=join, stack=stack, windows=windows)
    features = features_of(sampling)
    plan = plans.autoregressive_plan(config, features).plan
    if schedule != "autoregressive":
        speculation = SpeculationConfig(
            mode="tokenswift",
            schedule="partial",
            node_budget=4,
            draft_cache=24,
            draft_sinks=4,
            ngram_k=4,
            ngram_slots=4,
        ).with_mode("tokenswift", schedule)
        plan = plans.speculative_plans(config, speculation, features, "cpu")[0].plan
    state = blank_state(layout_of(plan, jnp.float32, CAPACITY), 1)
    settings = settings_of(sampling, vocab=config.vocab_size, max_new_tokens=CAPACITY - 1)
    return graph, plan, StepInputs(params, settings), jax.block_until_ready(state)
