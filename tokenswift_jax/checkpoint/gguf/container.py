"""The GGUF container: metadata by key and the place of each tensor, read with every length checked against the file."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.errors import UserError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # where general.alignment is absent
_MOST_DIMENSIONS = 4
_MOST_NESTED = 8  # arrays inside each other; known files have one inside another at most
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
# Metadata types of a fixed size: their number in the file -> the little-endian NumPy dtype.
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True)
class Entry:
    """A tensor's place in the file.

    Attributes:
      shape: dimensions in HF's order, rows first.
      kind: number of the storage type.
      offset: byte in the file at which the tensor begins.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Container:
    """The parsed header of a file.

    Attributes:
      path: the file.
      metadata: values by key: int, float, bool, str, or a list of these or of lists. A float is the shortest decimal
        number that the stored float32 rounds from.
      tensors: places by GGUF name.
      data: all bytes of the file, mapped.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Entry]
    data: np.ndarray


class _Reader:
    """A position in the bytes of a file."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.position = path, data.data, 0

    def damaged(self, fault: str) -> UserError:
        return UserError(f"{self.path} is damaged: {fault}")

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise UserError(f"{self.path} is truncated: its header needs {end} bytes or more, it has {len(self.data)}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        raw = self.take(self.number("<Q")).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"the text before byte {self.position} is not UTF-8") from None

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0]

    def _array(self, outer: int = 0) -> list[Any]:
        """An array inside `outer` others."""
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            self._expect(8 * count)
            return [self.string() for _ in range(count)]
        if kind == _ARRAY and outer < _MOST_NESTED:
            self._expect(12 * count)
            return [self._array(outer + 1) for _ in range(count)]
        return self._scalars(kind, count)

    def _expect(self, count: int) -> None:
        """Checks that so many bytes follow, as lengths alone need; without it a damaged count loops for hours."""
        self.take(count)
        self.position -= count

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise self.damaged(f"type {kind} before byte {self.position} is not a metadata type")
        values = np.frombuffer(self.take(count * _SCALARS[kind].itemsize), _SCALARS[kind])
        if kind == _FLOAT32:
            return [float(str(value)) for value in values]
        return values.tolist()


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, by its ending or by its first bytes."""
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_container(path: Path) -> Container:
    """Reads the header of a GGUF file.

    Raises:
      UserError: the file is unreadable, not GGUF, of an unknown version, truncated or damaged.
    """
    data = map_file(path)
    reader = _Reader(path, data)
    reader.take(len(MAGIC))
    version = reader.number("<I")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0:
            raise UserError(f"{path} is a big-endian GGUF file; only little-endian ones can be read")
        raise UserError(f"{path} is GGUF version {version}; known: {', '.join(map(str, _VERSIONS))}")
    tensors, fields = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key = reader.string()
        if key in metadata:
            raise reader.damaged(f"it states {key} twice")
        metadata[key] = reader.value()
    entries: dict[str, Entry] = {}
    for _ in range(tensors):
        name = reader.string()
        if name in entries:
            raise reader.damaged(f"it has the tensor {name} twice")
        entries[name] = _entry(reader)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.damaged(f"general.alignment is {alignment!r}")
    start = math.ceil(reader.position / alignment) * alignment
    placed = {name: Entry(entry.shape, entry.kind, start + entry.offset) for name, entry in entries.items()}
    return Container(path, metadata, placed, data)


def map_file(path: Path) -> np.ndarray:
    """All bytes of a GGUF file, which the operating system reads when they are used.

    Raises:
      UserError: the file is unreadable or does not begin as GGUF files do.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin != MAGIC:
            raise UserError(f"{path} is not a GGUF file: it begins with {begin!r}, not {MAGIC!r}")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _entry(reader: _Reader) -> Entry:
    dimensions = reader.number("<I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise reader.damaged(f"the tensor before byte {reader.position} has {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))
    if 0 in shape:
        raise reader.damaged(f"the tensor before byte {reader.position} is empty")
    return Entry(shape[::-1], reader.number("<I"), reader.number("<Q"))
