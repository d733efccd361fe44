"""The checkpoint that the first phase starts from: a copy of a given one, or a new tokenizer and random weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.recipe import Recipe
from demo.text import read_books
from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import base_directory, read_config
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config

END_OF_TEXT = "<|endoftext|>"
"""Token 0: the end of a book, and the start and padding mark."""


def make_start(folder: Path, recipe: Recipe, given: Path | None, text: Path) -> None:
    """Fills `folder` in one move: from `given`, else random weights and a tokenizer trained on the books of `text`.

    A folder made by an earlier call stays as it is.

    Raises:
      UserError: it was made from another checkpoint or for another model; the books are too short.
    """
    if folder.exists():
        if given is not None and checkpoint.fingerprint(checkpoint.resolve(given)) != checkpoint.fingerprint(folder):
            raise UserError(
                f"the run in {folder.parent} started from another checkpoint than {given}; give another --work"
            )
        _check_model(folder, recipe)
        return
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if given is None:
        _write_fresh(draft, recipe, text)
    else:
        _copy(checkpoint.resolve(given), draft, recipe)
    os.replace(draft, folder)


def _check_model(folder: Path, recipe: Recipe) -> None:
    found, wanted = read_config(folder), recipe.hf_config
    differ = [f"{name} ({found.get(name)!r})" for name, value in wanted.items() if found.get(name) != value]
    if differ:
        raise UserError(f"{folder} holds another model than the configuration's: {', '.join(differ)}")


def _copy(given: Path, folder: Path, recipe: Recipe) -> None:
    if base_directory(given) != given:
        raise UserError(f"{given} has its weights in another directory; start from a checkpoint with its own weights")
    _check_model(given, recipe)
    for file in given.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)


def _write_fresh(folder: Path, recipe: Recipe, text: Path) -> None:
    config = model_config(recipe.hf_config)
    tokenizer = train_tokenizer(read_books(text).values(), recipe.text["vocab_size"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None, "add_prefix_space": False}
    settings |= {"clean_up_tokenization_spaces": False, "model_max_length": config.max_position_embeddings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    model = Decoder(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0))
    for layer in model.layers:  # the residual stream sums 2 * layers terms: start them small
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.kernel[...] = linear.kernel[...] * jnp.float32((2 * config.num_layers) ** -0.5)
    tensors = checkpoint.state_tensors(nnx.split(model)[1])
    checkpoint.save(folder, recipe.hf_config | {"torch_dtype": "float32"}, tensors)


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
        raise UserError(f"the books give {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer
