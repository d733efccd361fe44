"""Tensors in safetensors files: found by header, read one slice at a time, written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.paths import write_text

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


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read on demand.

    Attributes:
      name: in HF's spelling.
      shape: as stored.
      dtype: as stored.
      read: returns the part of the values that an index of slices selects.
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
            with np.errstate(over="ignore"):
                narrow = values.astype(dtype)
            if not np.isfinite(narrow).all() and np.isfinite(values).all():
                raise UserError(f"{self.name} in {self.origin} has values beyond the range of {dtype}")
            return narrow

        return Tensor(self.name, self.shape, dtype, cast, self.origin)


def rows_of(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """The tensor that contains some rows of a matrix, int [count]."""

    def read(index: Index) -> np.ndarray:
        chosen, columns = index
        return tensor.read((slice(None), columns))[rows[chosen]]

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
    """The tensors of one safetensors file; reads only the header.

    Raises:
      UserError: the file is missing, truncated or not safetensors, or contains a dtype that no decoder has.
    """
    try:
        handle = safe_open(path, framework="numpy")  # checks that the data is as long as the header says
        names = list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file (truncated?): {_line(error)}") from None
    tensors = []
    for name in names:
        part = handle.get_slice(name)
        code = part.get_dtype()
        if code not in DTYPES:
            raise UserError(f"{name} in {path} is stored as {code}; known: {', '.join(DTYPES)}")
        tensors.append(Tensor(name, tuple(part.get_shape()), DTYPES[code], _reader(handle, name), str(path)))
    return tensors


def _reader(handle: safe_open, name: str) -> Callable[[Index], np.ndarray]:
    def read(index: Index) -> np.ndarray:
        part = handle.get_slice(name)
        # safetensors rejects a bare `:` in some positions, so a whole dimension needs explicit bounds
        bounds = tuple(slice(*cut.indices(size)[:2]) for cut, size in zip(index, part.get_shape(), strict=True))
        return np.asarray(part[bounds])

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
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
        missing = [shard for shard in shards if not (directory / shard).is_file()]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is not an index: it must be JSON with a weight_map") from None
    if missing:
        raise UserError(f"{index} names shards that are not there: {', '.join(missing)}")
    tensors = [tensor for shard in shards for tensor in read_file(directory / shard)]
    found = {(tensor.name, Path(tensor.origin).name) for tensor in tensors}
    absent = [name for name, shard in places.items() if (name, shard) not in found]
    if absent:
        raise UserError(f"{index} names tensors that their shards do not hold: {', '.join(sorted(absent))}")
    return tensors


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
