"""The writer of a checkpoint directory, from parameters or from another checkpoint's tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.orbax_weights import ORBAX_FOLDER, write_orbax
from tokenswift_jax.checkpoint.tensors import HEADS_FILE, Index, Tensor, write_file, write_model_files
from tokenswift_jax.paths import write_text

SHARD_BYTES = 5_000_000_000
# The class in transformers that runs a model_type.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NUMBERS = re.compile(r"\[\n[-\d,\s]+\]")  # a list of whole numbers, one a line; no string contains a line end


def state_tensors(state: nnx.State) -> list[Tensor]:
    """A decoder's parameters with HF's names and layout; the writer fetches them from the device one by one.

    Copies of others (`names.COPIES`) are left out.
    """
    flat = nnx.to_flat_state(state)
    return [parameter_tensor(path, param) for path, param in flat if path[0] not in names.COPIES]


def parameter_tensor(path: names.ParameterPath, param: nnx.Variable) -> Tensor:
    """The parameter at a path with HF's name and layout."""
    values, flip = param[...], names.is_transposed(path)

    def read(index: Index) -> np.ndarray:
        host = np.asarray(values)
        return (host.T if flip else host)[index]

    shape = tuple(reversed(values.shape)) if flip else tuple(values.shape)
    return Tensor(names.hf_name(path), shape, np.dtype(values.dtype), read, "the model")


def save(
    directory: Path,
    hf_config: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    orbax: bool = False,
) -> None:
    """Writes config.json, `model*.safetensors` and, when there are draft heads, `heads.safetensors`.

    Args:
      directory: an existing directory.
      hf_config: the contents of config.json, including its "tokenswift" block.
      tensors: tensors with HF's names. Those of draft heads go to their own file; if there are no others, `save` writes
        no model file (then `tokenswift.base` names the model).
      shard_bytes: the size in bytes above which a model is split into shards with an index.
      orbax: whether to write an orbax checkpoint of all tensors (`orbax_weights`) in place of safetensors files.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    heads = [tensor for tensor in ordered if tensor.name.startswith(names.HEAD_PREFIX)]
    model = [tensor for tensor in ordered if not tensor.name.startswith(names.HEAD_PREFIX)]
    if orbax:
        write_orbax(directory / ORBAX_FOLDER, ordered)
    elif model:
        write_model_files(directory, model, shard_bytes)
    if heads and not orbax:
        write_file(directory / HEADS_FILE, heads)
    text = json.dumps(hf_config, indent=2)
    # Without this, a draft vocabulary takes a line for each of its tokens.
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_text(directory / "config.json", text + "\n")
