"""The loader of a decoder's parameters: it reads a checkpoint directory one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.directory import base_directory, read_config, resolve
from tokenswift_jax.checkpoint.tensors import DTYPES, HEADS_FILE, Index, Tensor, read_file, read_model_files, rows_of
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.hf_config import rope_override as override_rope
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.progress_report import Report, phase, silent

_DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES.values()}
_LISTED = 8  # tensors named in one message


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint; only its headers have been read.

    Attributes:
      directory: the directory asked for.
      hf_config: its config.json (with its base's fields where it has none of its own).
      config: the configuration of the decoder that it describes.
      tensors: exactly the decoder's tensors, by parameter path; their shapes are those that HF stores.
    """

    directory: Path
    hf_config: dict[str, Any]
    config: ModelConfig
    tensors: dict[names.ParameterPath, Tensor]

    @property
    def dtype(self) -> np.dtype:
        """The model's dtype, taken from the embedding."""
        return self.tensors[("embed_tokens",)].dtype


def open_checkpoint(path_or_hub_id: str | Path, rope_override: Mapping[str, Any] | None = None) -> Checkpoint:
    """Finds a checkpoint's tensors and checks them against the decoder that its config.json describes.

    Raises:
      UserError: no checkpoint, unsupported configuration, unreadable files, or tensors that are missing, extra or
        mis-shaped (listed).
    """
    directory = resolve(path_or_hub_id)
    hf_config = read_config(directory)
    if rope_override is not None:
        hf_config = override_rope(hf_config, rope_override)
    config = model_config(hf_config)
    base = base_directory(directory)
    stored = {names.canonical(tensor.name): tensor for tensor in read_model_files(base)}
    if (directory / HEADS_FILE).is_file():
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(names.HEAD_PREFIX)}
        stored |= {names.canonical(tensor.name): tensor for tensor in read_file(directory / HEADS_FILE)}
    return Checkpoint(directory, hf_config, config, _match(config, stored, directory))


def abstract_decoder(config: ModelConfig, dtype: Any) -> Decoder:
    """A decoder with shapes in place of parameters."""
    return nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))


def _match(config: ModelConfig, stored: dict[str, Tensor], directory: Path) -> dict[names.ParameterPath, Tensor]:
    state = nnx.split(abstract_decoder(replace(config, draft_vocab=None), jnp.float32))[1]
    expected = {names.hf_name(path): (path, param) for path, param in nnx.to_flat_state(state)}
    stored = {name: tensor for name, tensor in stored.items() if not names.is_harmless(name)}
    head, table = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if config.tie_word_embeddings and head is not None and table is not None:
        if head.shape != table.shape or head.dtype != table.dtype or not np.array_equal(head.values(), table.values()):
            raise UserError(
                f"{directory} ties its embeddings (tie_word_embeddings) but has an lm_head.weight of its own values"
            )
        del stored["lm_head.weight"]

    problems = []
    missing = sorted(set(expected) - set(stored))
    extra = sorted(set(stored) - set(expected))
    if missing:
        problems.append("missing: " + _listing(missing))
    if extra:
        known = any(name.startswith(names.HEAD_PREFIX) for name in extra)
        hint = f" (config.json names {config.num_draft_heads} draft heads)" if known else ""
        problems.append("extra: " + _listing(extra) + hint)
    shapes = []
    for name in sorted(set(expected) & set(stored)):
        path, param = expected[name]
        shape = tuple(reversed(param.shape)) if names.is_transposed(path) else tuple(param.shape)
        if stored[name].shape != shape:
            shapes.append(f"{name} {list(stored[name].shape)} instead of {list(shape)}")
    if shapes:
        foreign = all(entry.startswith(names.HEAD_PREFIX) for entry in shapes)
        what = f"draft heads made for another hidden size than {config.hidden_size}: " if foreign else "mis-shaped: "
        problems.append(what + _listing(shapes))
    if problems:
        raise UserError(f"the tensors of {directory} do not fit its config.json; " + "; ".join(problems))
    return {path: replace(stored[name], name=name) for name, (path, _) in expected.items()}


def _listing(entries: list[str]) -> str:
    rest = len(entries) - _LISTED
    return ", ".join(entries[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def load_decoder(
    path_or_hub_id: str | Path,
    dtype: str | Any | None = None,
    rope_override: Mapping[str, Any] | None = None,
    sharding: Callable[[names.ParameterPath], jax.sharding.Sharding] | None = None,
    *,
    copies: bool = True,
    join: bool | None = None,
    report: Report = silent,
) -> tuple[ModelConfig, nnx.GraphDef, nnx.State]:
    """Loads a decoder split into (configuration, graph, parameters); each tensor goes directly to its shards.

    Peak host memory beyond the parameters themselves stays near one tensor.

    Args:
      path_or_hub_id: a checkpoint directory, or an id on the hub.
      dtype: bfloat16, float16, float32 or float64; None: the checkpoint's own, at least float32 on CPU.
      rope_override: RoPE parameters to use instead of config.json's.
      sharding: returns the sharding of a parameter for its path; None: all parameters go to the default device.
      copies: whether parameters may be stored twice where that decodes faster: tied embeddings on CPU, and the LM
        head's columns for the draft vocabulary. False for training, which would change one of the two.
      join: whether linear maps of the same rows become one (`models.joined`); None: where that decodes faster (on one
        GPU). False for training.
      report: receives the number of parameter bytes loaded so far.

    Raises:
      UserError: as `open_checkpoint`; an unknown dtype, or float64 without jax_enable_x64.
    """
    checkpoint = open_checkpoint(path_or_hub_id, rope_override)
    chosen = parse_dtype(dtype) if dtype is not None else checkpoint.dtype
    if dtype is None and jax.default_backend() == "cpu":
        chosen = np.dtype(wide_dtype(chosen))
    if chosen == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise UserError("dtype float64 needs JAX_ENABLE_X64=1")
    stored = checkpoint.config
    head = checkpoint.tensors[("embed_tokens",) if stored.tie_word_embeddings else ("lm_head", "kernel")]
    if copies and stored.tie_word_embeddings and jax.default_backend() == "cpu":
        # A tied head multiplies by the transposed table, which a CPU does at half the speed for several rows.
        stored = replace(stored, tie_word_embeddings=False)
        checkpoint.tensors[("lm_head", "kernel")] = head
    shell = abstract_decoder(stored, chosen)
    if stored.draft_vocab is not None:
        if copies:
            checkpoint.tensors[("draft_lm_head", "kernel")] = rows_of(head, stored.draft_vocab.ids)
        else:
            shell.draft_lm_head = None
    graph, state = nnx.split(shell)
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = nnx.to_flat_state(state)
    loaded, done, total = [], 0, sum(math.prod(param.shape) for _, param in wanted) * chosen.itemsize
    with phase(report, "loading the model", total, "bytes") as so_far:
        for path, param in wanted:
            place = local if sharding is None else sharding(path)
            read = _shard_reader(checkpoint.tensors[path], path, chosen)
            values = jax.make_array_from_callback(param.shape, place, read)
            loaded.append((path, param.replace(values)))
            done += values.nbytes
            so_far(done)
    params = nnx.from_flat_state(loaded)
    if join or (join is None and sharding is None and jax.default_backend() == "gpu"):
        decoder = nnx.merge(graph, params)
        del loaded, params, values  # or all parts stay in memory beside what is joined
        graph, params = nnx.split(joined(decoder))
    return checkpoint.config, graph, params


def _shard_reader(tensor: Tensor, path: names.ParameterPath, dtype: np.dtype) -> Callable[[Index | None], np.ndarray]:
    tensor = tensor.astype(dtype)

    def read(index: Index | None) -> np.ndarray:
        assert index is not None
        if names.is_transposed(path):
            return tensor.read(index[::-1]).T
        return tensor.read(index)

    return read


def parse_dtype(name: str | Any) -> np.dtype:
    """The dtype of a name in config.json, or of a dtype object of NumPy or JAX.

    Raises:
      UserError: checkpoints do not store weights in this dtype.
    """
    if not isinstance(name, str):
        try:
            name = jnp.dtype(name).name
        except TypeError:
            raise UserError(f"dtype is {name!r}; known: {', '.join(_DTYPE_NAMES)}", arguments=("dtype",)) from None
    if name not in _DTYPE_NAMES:
        raise UserError(f"unknown dtype {name!r}; known: {', '.join(_DTYPE_NAMES)}", arguments=("dtype",))
    return _DTYPE_NAMES[name]
