"""The conversion of a GGUF file to a checkpoint directory in HF's layout."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tokenswift_jax.checkpoint.counted import counted
from tokenswift_jax.checkpoint.directory import GENERATION_FILE
from tokenswift_jax.checkpoint.gguf.config import architecture, hf_config
from tokenswift_jax.checkpoint.gguf.container import read_container
from tokenswift_jax.checkpoint.gguf.generation import generation_config
from tokenswift_jax.checkpoint.gguf.tokenizer import write_tokenizer
from tokenswift_jax.checkpoint.gguf.weights import hf_tensors
from tokenswift_jax.checkpoint.match import match_tensors
from tokenswift_jax.checkpoint.save import save
from tokenswift_jax.checkpoint.tensors import Tensor
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.progress_report import Report, silent


def convert_gguf(file: Path, folder: Path, dtype: np.dtype | None = None, report: Report = silent) -> list[Tensor]:
    """Writes the model, its tokenizer, chat template and generation settings; returns the tensors for a summary.

    Quantised weights become float32, the narrowest dtype that represents them exactly.

    Args:
      file: the GGUF file.
      folder: the destination, an existing directory.
      dtype: the dtype of the written tensors; None: no cast.
      report: receives the number of bytes written so far.

    Raises:
      UserError: the gguf package is missing, or the file is damaged or not a model of a known kind.
    """
    container = read_container(file)
    name = architecture(container)
    if find_spec("gguf") is None:
        raise UserError(f"reading {file} needs the gguf package: pip install 'tokenswift_jax[gguf]'")
    config = hf_config(container)
    parsed = model_config(config)
    stored = hf_tensors(container, name, config)
    matched = match_tensors(parsed, stored, str(file), "its metadata")
    tensors = sorted(matched.values(), key=lambda tensor: tensor.name)
    if dtype is not None:
        tensors = [tensor.astype(dtype) for tensor in tensors]
    vocabulary = write_tokenizer(container, name, folder, parsed.vocab_size, config["max_position_embeddings"])
    generation = generation_config(container, vocabulary)
    config |= {key: value for key, value in generation.items() if key.endswith("_token_id")}
    config["dtype"] = str(next(tensor for tensor in tensors if tensor.name == "model.embed_tokens.weight").dtype)
    if generation:
        (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    with counted(tensors, f"converting {file.name}", report) as announced:
        save(folder, config, announced)
    return tensors
