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
from jax.sharding import Mesh

from pallas_kernels.implementation import implementation
from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.converted import conversion_advice
from tokenswift_jax.checkpoint.directory import base_directory, read_config, resolve
from tokenswift_jax.checkpoint.match import abstract_decoder, match_tensors
from tokenswift_jax.checkpoint.orbax_weights import ORBAX_FOLDER, read_orbax
from tokenswift_jax.checkpoint.tensors import (
    DTYPES,
    HEADS_FILE,
    INDEX_FILE,
    WHOLE_FILE,
    Index,
    Tensor,
    owned,
    read_file,
    read_model_files,
    rows_of,
    selected,
)
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.models.hf_config import rope_override as override_rope
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.models.stacked import Groups, groups_for, stacked
from tokenswift_jax.parallel.device_memory import check_room
from tokenswift_jax.parallel.fit import fit
from tokenswift_jax.parallel.mesh import mesh_over
from tokenswift_jax.parallel.mesh_spec import CONTEXT, MODEL, STAGE, MeshSpec
from tokenswift_jax.parallel.rules import parameter_sharding
from tokenswift_jax.parallel.stages import filled
from tokenswift_jax.progress_report import Report, phase, silent

_DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES.values()}


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
    with conversion_advice(directory):
        hf_config = read_config(directory)
    if rope_override is not None:
        hf_config = override_rope(hf_config, rope_override)
    config = model_config(hf_config)
    base = base_directory(directory)
    in_files = any((base / name).is_file() for name in (WHOLE_FILE, INDEX_FILE))
    in_orbax = not in_files and (base / ORBAX_FOLDER).is_dir()
    with conversion_advice(base):
        read = read_orbax(base / ORBAX_FOLDER) if in_orbax else read_model_files(base)
    stored = {names.canonical(tensor.name): tensor for tensor in read}
    if (directory / HEADS_FILE).is_file():
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(names.HEAD_PREFIX)}
        stored |= {names.canonical(tensor.name): tensor for tensor in read_file(directory / HEADS_FILE)}
    return Checkpoint(directory, hf_config, config, match_tensors(config, stored, str(directory)))


def chosen_dtype(checkpoint: Checkpoint, dtype: str | Any | None = None) -> np.dtype:
    """The dtype of weights and activations: `dtype`, or None for the checkpoint's own, at least float32 on CPU.

    Raises:
      UserError: an unknown dtype, or float64 without jax_enable_x64.
    """
    chosen = parse_dtype(dtype) if dtype is not None else checkpoint.dtype
    if dtype is None and jax.default_backend() == "cpu":
        chosen = np.dtype(wide_dtype(chosen))
    if chosen == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise UserError("dtype float64 needs JAX_ENABLE_X64=1")
    return chosen


def load_decoder(
    source: str | Path | Checkpoint,
    dtype: str | Any | None = None,
    rope_override: Mapping[str, Any] | None = None,
    sharding: Callable[[names.ParameterPath, tuple[int, ...]], jax.sharding.Sharding] | None = None,
    *,
    mesh: Mesh | None = None,
    copies: bool = True,
    join: bool | None = None,
    stack: bool = True,
    report: Report = silent,
    length: int | None = None,
) -> tuple[ModelConfig, nnx.GraphDef, nnx.State]:
    """Loads a decoder split into (configuration, graph, parameters); each tensor goes directly to its shards.

    The configuration is the one of the graph: untied where `copies` stores a tied head twice, and with the sizes that
    fit a mesh (`parallel.fit`).

    Peak host memory beyond the parameters themselves stays near one tensor.

    Args:
      source: a checkpoint directory, an id on the hub, or an open checkpoint.
      dtype: bfloat16, float16, float32 or float64; None: as `chosen_dtype`.
      rope_override: RoPE parameters to use instead of config.json's; of an open checkpoint, its own.
      sharding: returns the sharding of a parameter for its path and shape; None: all parameters go to the default
        device.
      mesh: the mesh to place all parameters on (`parallel.rules`); None: no mesh.
      copies: whether parameters may be stored twice where that decodes faster: tied embeddings on CPU, and the LM
        head's columns for the draft vocabulary. False for training, which would change one of the two.
      join: whether linear maps of the same rows become one (`models.joined`); None: where that decodes faster (on one
        GPU). False for training.
      stack: whether the first layers of a deep decoder become one stack where that decodes as fast
        (`models.stacked`). False for training. On a mesh with stages, all layers are in a stack, a group a stage.
      report: receives the number of parameter bytes loaded so far.
      length: positions of a text to expect, whose cache has to fit a mesh beside the weights; None: unknown.

    Raises:
      UserError: as `open_checkpoint`; an unknown dtype, or float64 without jax_enable_x64; weights that do not fit
        the device, or weights and cache that do not fit the devices of the mesh.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, rope_override)
    chosen = chosen_dtype(checkpoint, dtype)
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    head = tensors[("embed_tokens",) if config.tie_word_embeddings else ("lm_head", "kernel")]
    if copies and config.tie_word_embeddings and jax.default_backend() == "cpu":
        # A tied head multiplies by the transposed table, which a CPU does at half the speed for several rows.
        config = replace(config, tie_word_embeddings=False)
        tensors[("lm_head", "kernel")] = head
    if mesh is not None and (fitted := fit(config, mesh.shape[MODEL], mesh.shape[CONTEXT])) is not None:
        config, found = fitted.config, {path: fitted.source(path) for path in tensors}
        tensors = {path: selected(tensors[path], *of) if of else tensors[path] for path, of in found.items()}
    stages = 1 if mesh is None else mesh.shape[STAGE]
    if stages > 1:
        config = filled(config, stages)
    groups = Groups(stages, config.num_layers // stages)
    shell = abstract_decoder(config, chosen, groups if stages > 1 else None)
    if config.draft_vocab is not None:
        if copies:
            tensors[("draft_lm_head", "kernel")] = rows_of(head, config.draft_vocab.ids)
        else:
            shell.draft_lm_head = None
    graph, state = nnx.split(shell)
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = nnx.to_flat_state(state)
    if mesh is not None:
        check_room(mesh, state, config, chosen, length)
    elif sharding is None:  # the engine looks at the cache once it knows the prompt
        check_room(mesh_over(jax.local_devices(), MeshSpec()), state, config, chosen)
    loaded, done, total = [], 0, sum(math.prod(param.shape) for _, param in wanted) * chosen.itemsize
    with phase(report, "loading the model", total, "bytes") as so_far:
        for path, param in wanted:
            place = local if sharding is None else sharding(path, param.shape)
            if mesh is not None:
                place = parameter_sharding(mesh, path, param.shape)
            if path[0] == "stack":
                read = _stack_reader(tensors, path, groups, param.shape, chosen)
            else:
                read = _shard_reader(tensors[path], path, chosen)
            values = _array(param.shape, place, read)
            loaded.append((path, param.replace(values)))
            done += values.nbytes
            so_far(done)
    params = nnx.from_flat_state(loaded)
    join = (sharding is None and mesh is None and implementation() == "gpu") if join is None else join
    deep = groups_for(config) if stack and mesh is None else None
    if join or deep:
        decoder = nnx.merge(graph, params)
        # Without this, all parts stay in memory beside the joined maps and the stack.
        del loaded, params, values
        decoder = joined(decoder) if join else decoder
        graph, params = nnx.split(stacked(decoder, deep) if deep else decoder)
    return config, graph, params


def _shard_reader(tensor: Tensor, path: names.ParameterPath, dtype: np.dtype) -> Callable[[Index], np.ndarray]:
    tensor = tensor.astype(dtype)

    def read(index: Index) -> np.ndarray:
        if names.is_transposed(path):
            return owned(tensor.read(index[::-1])).T
        return owned(tensor.read(index))

    return read


def _stack_reader(
    tensors: Mapping[names.ParameterPath, Tensor],
    path: names.ParameterPath,
    groups: Groups,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Callable[[Index], np.ndarray]:
    """Reads parts of an array of a stack (`models.stacked`) from its layers' tensors; layers past the checkpoint's are
    zeros."""
    _, place, *rest = path

    def of_layer(layer: int, index: Index) -> np.ndarray:
        own = ("layers", layer, *rest)
        if own in tensors:
            return _shard_reader(tensors[own], own, dtype)(index)
        return np.zeros([len(range(size)[cut]) for cut, size in zip(index, shape[1:], strict=True)], dtype)

    def read(index: Index) -> np.ndarray:
        chosen = range(groups.count)[index[0]]
        layers = [of_layer(group * groups.size + place, index[1:]) for group in chosen]
        return layers[0][None] if len(layers) == 1 else np.stack(layers)

    return read


def _array(shape: tuple[int, ...], place: jax.sharding.Sharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """The array of a sharding, read shard by shard; devices with the same shard get it from one read.

    Without this, the host has the shards of all its devices in memory beside the devices' own (cost: twice the largest
    parameter on a CPU).
    """
    parts: dict[str, tuple[Index, list[Any]]] = {}
    for device, index in place.addressable_devices_indices_map(shape).items():
        assert index is not None
        parts.setdefault(str(index), (index, []))[1].append(device)
    arrays = []
    for index, devices in parts.values():
        values = read(index)
        arrays += [jax.device_put(values, device) for device in devices]
        jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


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
