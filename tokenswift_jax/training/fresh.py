"""A checkpoint that knows nothing, to train a model from its beginning: a new tokenizer and random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenswift_jax.checkpoint.save import save, state_tensors
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config

END_OF_TEXT = "<|endoftext|>"
"""Token 0: the end of a document, and the start and padding mark."""


def write_fresh(folder: Path, hf_config: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Writes a tokenizer trained on `texts` and random float32 weights of a config.json into an empty folder.

    Raises:
      UserError: the configuration is not supported, or the texts are too short for its vocabulary.
    """
    config = model_config(dict(hf_config))
    tokenizer = train_tokenizer(texts, config.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None, "add_prefix_space": False}
    settings |= {"clean_up_tokenization_spaces": False, "model_max_length": config.max_position_embeddings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    model = Decoder(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0))
    for layer in model.layers:  # the residual stream sums 2 * layers terms: start them small
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.kernel[...] = linear.kernel[...] * jnp.float32((2 * config.num_layers) ** -0.5)
    save(folder, dict(hf_config) | {"torch_dtype": "float32"}, state_tensors(nnx.split(model)[1]))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly `vocab_size` entries: the end mark, 256 bytes, merges.

    Raises:
      UserError: the texts are too short for so many.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(f"the texts give {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer
