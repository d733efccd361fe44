"""A checkpoint's weights as an orbax checkpoint: the parameters by their path, as the modules store them.

A linear map's `kernel` is [in, out] there, so that `orbax` restores a tree for `flax.nnx` without any other program.
Arrays are written one at a time, in chunks of a megabyte, so that each process reads little more than its slices.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.tensors import DTYPES, Index, Tensor, scratch
from tokenswift_jax.checkpoint.tensorstore_errors import system_error
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.processes.agreement import agreed

ORBAX_FOLDER = "orbax"
# tensorstore decodes whole chunks in malloc's memory. Larger ones leave holes that the parameters then split.
_CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 21
_METADATA = "_METADATA"


def write_orbax(folder: Path, tensors: Sequence[Tensor]) -> None:
    """Writes tensors with HF's names as an orbax checkpoint; the folder must not exist.

    Raises:
      WriteError: the system refuses, for example on a full disk.
    """
    import orbax.checkpoint as ocp

    _silence()
    tree: dict[str, Any] = {}
    for tensor in tensors:
        path = names.parameter_path(tensor.name)
        assert path is not None, tensor.name
        *places, last = map(str, path)
        branch = tree
        for place in places:
            branch = branch.setdefault(place, {})
        branch[last] = _transposed(tensor) if names.is_transposed(path) else tensor
    known = ocp.type_handlers.create_type_handler_registry((Tensor, _handler()))
    chunks = _mapped(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with writing(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=known)) as writer:
        try:
            writer.save(folder.resolve(), args=ocp.args.PyTreeSave(tree, save_args=chunks))
        except ValueError as error:  # also a tensor that cannot be read, or not be cast
            if (reason := system_error(error)) is None:
                raise
            raise reason from error


def read_orbax(folder: Path) -> list[Tensor]:
    """The tensors of an orbax checkpoint, with HF's names and layout; process 0 alone reads its metadata.

    Raises:
      UserError: no orbax checkpoint, or an array that no decoder has.
    """
    found = []
    for name, shape, dtype in agreed(lambda: _contents(folder)):
        path = tuple(int(part) if part.isdigit() else part for part in name.split("."))
        try:
            hf_name = names.hf_name(path)
        except KeyError:
            raise UserError(f"{name} in {folder} is no parameter of a decoder") from None
        if dtype not in map(str, DTYPES.values()):
            raise UserError(f"{name} in {folder} is stored as {dtype}; known: {', '.join(map(str, DTYPES.values()))}")
        tensor = Tensor(hf_name, shape, np.dtype(dtype), _reader(folder, name), str(folder))
        found.append(_transposed(tensor) if names.is_transposed(path) else tensor)
    return found


def _contents(folder: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """The path, the shape and the dtype of every array."""
    import orbax.checkpoint as ocp

    _silence()
    try:
        described: Any = ocp.PyTreeCheckpointer().metadata(folder.resolve())
        found: list[tuple[str, tuple[int, ...], str]] = []
        _mapped(
            lambda entry: found.append((entry.name, tuple(entry.shape), str(np.dtype(entry.dtype)))),
            described.item_metadata.tree,
        )
    except Exception as error:  # orbax and tensorstore raise many kinds, and other programs store other trees
        raise UserError(f"{folder} is not a readable orbax checkpoint: {' '.join(str(error).split())[:200]}") from None
    return found


def _reader(folder: Path, name: str) -> Callable[[Index], np.ndarray]:
    """Reads slices through tensorstore, a few rows of chunks at a time: it decodes chunks in memory of its own."""

    def read(index: Index) -> np.ndarray:
        try:
            return values_of(index)
        except (OSError, ValueError) as error:
            cause = system_error(error) or error
            reason = cause.strerror if isinstance(cause, OSError) else " ".join(str(cause).split())[:200]
            raise UserError(f"{folder} is damaged or incomplete: {name} cannot be read ({reason})") from None

    def values_of(index: Index) -> np.ndarray:
        import tensorstore as ts

        described = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
        driver = "zarr3" if described.get("use_zarr3") else "zarr"
        base = {"driver": "ocdbt", "base": folder.resolve().as_uri() + "/", "path": f"{name}/"}
        store: Any = ts.open({"driver": driver, "kvstore": base}, open=True, read=True).result()
        (begin, end, _), *rest = (cut.indices(size) for cut, size in zip(index, store.shape, strict=True))
        others = tuple(slice(low, high) for low, high, _ in rest)
        dtype, chunk = store.dtype.numpy_dtype, store.chunk_layout.read_chunk.shape
        values = scratch((end - begin, *(high - low for low, high, _ in rest)), dtype)
        row_bytes = math.prod(store.shape[1:]) * dtype.itemsize
        rows = chunk[0] * max(1, _READ_BYTES // (chunk[0] * row_bytes))
        for first in range(begin - begin % rows, end, rows):
            low, high = max(first, begin), min(first + rows, end)
            values[low - begin : high - begin] = store[(slice(low, high), *others)].read().result()
        return values

    return read


def _transposed(tensor: Tensor) -> Tensor:
    def read(index: Index) -> np.ndarray:
        return tensor.read(index[::-1]).T

    return Tensor(tensor.name, tensor.shape[::-1], tensor.dtype, read, tensor.origin)


def _handler() -> Any:
    from orbax.checkpoint.type_handlers import NumpyHandler

    class OneAtATime(NumpyHandler):
        """Writes tensors as arrays; without it, orbax copies all of them into memory first."""

        def __init__(self) -> None:
            super().__init__(deepcopy_host_arrays=False)

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            for value, info, arg in zip(values, infos, args, strict=True):
                for done in await super().serialize([value.values()], [info], [arg]):
                    done.result()
            return []

    return OneAtATime()


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _mapped(function, part) for name, part in tree.items()}
    return function(tree)


def _silence() -> None:
    """Without this, orbax logs every file that it writes."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
