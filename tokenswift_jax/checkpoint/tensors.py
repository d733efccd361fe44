"""Tensors in safetensors files: found by header, read one slice at a time, written one tensor at a time."""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.paths import write_text
from tokenswift_jax.processes.agreement import agreed
from tokenswift_jax.text.reading import NOT_FETCHED, POINTER, is_pointer, read_json

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
INDEX_FILE = "model.safetensors.index.json"
WHOLE_FILE = "model.safetensors"
HEADS_FILE = "heads.safetensors"

Index = tuple[slice, ...]
_BLOCK_BYTES = 1 << 22
_OFF_PAGE = 16
_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read on demand.

    Attributes:
      name: in HF's spelling.
      shape: as stored.
      dtype: as stored.
      read: returns the part of the values that an index of slices selects. It may be a view of the file, which takes
        memory that the kernel can drop: copy it (`owned`) to keep it.
      origin: the file that contains it, for messages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    origin: str

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def values(self) -> np.ndarray:
        """All values."""
        return self.read(tuple(slice(None) for _ in self.shape))

    def astype(self, dtype: np.dtype) -> Tensor:
        """The same tensor, cast when it is read."""
        if dtype == self.dtype:
            return self

        def cast(index: Index) -> np.ndarray:
            values = self.read(index)
            narrow = scratch(values.shape, dtype)
            for part in _blocks(values.shape, values.dtype.itemsize):
                with np.errstate(over="ignore"):
                    narrow[part] = values[part]
                if not np.isfinite(narrow[part]).all() and np.isfinite(values[part]).all():
                    raise UserError(f"{self.name} in {self.origin} has values beyond the range of {dtype}")
            return narrow

        return Tensor(self.name, self.shape, dtype, cast, self.origin)


def owned(values: np.ndarray) -> np.ndarray:
    """The values in memory of their own: a copy of a view of a file, anything else as it is."""
    if not isinstance(values, np.memmap):
        return values
    copied = scratch(values.shape, values.dtype)
    copied[...] = values
    return copied


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values; the system takes its memory back as soon as nothing refers to it.

    Without it, malloc keeps the memory of each array for the next, between those of the parameters (cost: 50 MB for a
    checkpoint of 370 MB).
    """
    count = math.prod(shape)
    if count * dtype.itemsize < _BLOCK_BYTES // 4:
        return np.empty(shape, dtype)
    # An array at the start of a page could become the device's own memory, which no program may then overwrite.
    memory = mmap.mmap(-1, count * dtype.itemsize + _OFF_PAGE, **_PRIVATE)
    return np.frombuffer(memory, dtype, count, _OFF_PAGE).reshape(shape)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have equal values; memory contains a few megabytes of them."""
    blocks = _blocks(one.shape, one.dtype.itemsize)
    rest = (slice(None),) * (len(one.shape) - 1)
    return all(np.array_equal(one.read((part, *rest)), other.read((part, *rest))) for part in blocks)


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and same_values(one, other)


def _blocks(shape: tuple[int, ...], itemsize: int) -> list[Any]:
    """The rows of an array in slices of a few megabytes; all of a scalar."""
    if not shape:
        return [...]
    rows = max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * itemsize))
    return [slice(first, first + rows) for first in range(0, shape[0], rows)]


def rows_of(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """The tensor that contains some rows of a matrix, int [count]."""

    def read(index: Index) -> np.ndarray:
        chosen, columns = index
        wanted = rows[chosen]
        first, last = int(wanted.min()), int(wanted.max()) + 1
        return tensor.read((slice(first, last), columns))[wanted - first]

    return Tensor(tensor.name, (len(rows), *tensor.shape[1:]), tensor.dtype, read, tensor.origin)


def selected(tensor: Tensor, dimension: int, source: np.ndarray) -> Tensor:
    """The tensor whose entry i of a dimension is entry `source[i]` of the given one, or zeros if that is negative."""
    shape = (*tensor.shape[:dimension], len(source), *tensor.shape[dimension + 1 :])

    def read(index: Index) -> np.ndarray:
        wanted = source[index[dimension]]
        there = np.flatnonzero(wanted >= 0)
        values = np.zeros([len(range(size)[cut]) for cut, size in zip(index, shape, strict=True)], tensor.dtype)
        if len(there):
            first, last = int(wanted[there].min()), int(wanted[there].max()) + 1
            part = tensor.read((*index[:dimension], slice(first, last), *index[dimension + 1 :]))
            values[(slice(None),) * dimension + (there,)] = np.take(part, wanted[there] - first, axis=dimension)
        return values

    return Tensor(tensor.name, shape, tensor.dtype, read, tensor.origin)


def from_array(name: str, array: np.ndarray) -> Tensor:
    """A tensor already in memory."""
    return Tensor(name, array.shape, array.dtype, lambda index: array[index], "memory")


def read_file(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file; process 0 alone reads its header, and each process the slices it needs.

    Raises:
      UserError: the file is missing, truncated or not safetensors, or contains a dtype that no decoder has.
    """
    contents = functools.cache(lambda: np.memmap(path, np.uint8, "r"))
    return [
        Tensor(name, shape, DTYPES[code], _reader(contents, DTYPES[code], shape, start), str(path))
        for name, code, shape, start in agreed(lambda: _header(path))
    ]


def _header(path: Path) -> list[tuple[str, str, tuple[int, ...], int]]:
    """The name, the dtype's code, the shape and the first byte of every tensor of a file."""
    try:
        with path.open("rb") as file:
            if is_pointer(file.read(len(POINTER))):
                raise UserError(f"{path} {NOT_FETCHED}")
        safe_open(path, framework="numpy")  # checks that the data is as long as the header says
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file (truncated?): {_line(error)}") from None
    entries.pop("__metadata__", None)
    found = []
    for name, entry in entries.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{name} in {path} is stored as {entry['dtype']}; known: {', '.join(DTYPES)}")
        found.append((name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]))
    return found


def _reader(
    contents: Callable[[], np.memmap], dtype: np.dtype, shape: tuple[int, ...], start: int
) -> Callable[[Index], np.ndarray]:
    size = math.prod(shape) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        return contents()[start : start + size].view(dtype).reshape(shape)[index]

    return read


def read_model_files(directory: Path) -> list[Tensor]:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
      UserError: neither exists, the index does not fit the shards, or a file is unreadable.
    """
    if (directory / WHOLE_FILE).is_file():
        return read_file(directory / WHOLE_FILE)
    index = directory / INDEX_FILE
    if not index.is_file():
        if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
            raise UserError(f"{directory} has PyTorch weights only; save them as safetensors (model.safetensors) first")
        raise UserError(f"no weights in {directory}: neither {WHOLE_FILE} nor {INDEX_FILE}")
    try:
        places = read_json(index)["weight_map"]
        shards = sorted(set(places.values()))
        missing = [shard for shard in shards if not (directory / shard).is_file()]
    except (UserError, KeyError, AttributeError, TypeError) as error:
        why = error if isinstance(error, UserError) else "it must be JSON with a weight_map"
        raise UserError(f"{index} is not an index: {why}") from None
    if missing:
        raise UserError(f"{index} names shards that are not there: {', '.join(missing)}")
    contents = {shard: {tensor.name: tensor for tensor in read_file(directory / shard)} for shard in shards}
    absent = [name for name, shard in places.items() if name not in contents[shard]]
    if absent:
        raise UserError(f"{index} names tensors that their shards do not hold: {', '.join(sorted(absent))}")
    found = dict[str, Tensor]()
    for tensor in (tensor for shard in shards for tensor in contents[shard].values()):
        other = found.setdefault(tensor.name, tensor)
        if other is not tensor and not _same(other, tensor):
            raise UserError(
                f"{tensor.name} has other values in {other.origin} than in {tensor.origin}; remove the one that "
                "is not of this checkpoint"
            )
    return list(found.values())


def write_file(path: Path, tensors: Sequence[Tensor]) -> None:
    """Writes one safetensors file with one tensor in memory at a time.

    The header contains `format: pt`, which transformers requires.

    Raises:
      WriteError: the system refuses, for example on a full disk.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with writing(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.values()).reshape(-1).view(np.uint8).data)


def write_model_files(directory: Path, tensors: Sequence[Tensor], shard_bytes: int) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` and their index, as transformers names them."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_file(directory / WHOLE_FILE, tensors)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / name, shard)
        places |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": places}
    write_text(directory / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
