"""Values of GGUF tensors: plain numbers as they are, quantised blocks as float32."""

from __future__ import annotations

import math
from importlib.metadata import version

import ml_dtypes
import numpy as np

from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.tensors import Index, Tensor
from tokenswift_jax.errors import UserError

_PLAIN = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# llama.cpp falls back to IQ4_NL in K-quantised files where a row is no multiple of 256 values.
_QUANTISED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)


def read_tensor(container: Container, name: str) -> Tensor:
    """A tensor of the file, read and dequantised on demand, row by row.

    The dtype is the stored one, float32 for quantised types, whose values no 16-bit dtype represents exactly.

    Raises:
      UserError: a storage type that is unknown, a row that is not a whole number of blocks, or bytes past the end of
        the file; when the tensor is read: values that are not finite.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    entry, path = container.tensors[name], container.path
    try:
        kind = GGMLQuantizationType(entry.kind)
    except ValueError:
        raise UserError(
            f"{name} in {path} has the storage type {entry.kind}, which the gguf package {version('gguf')} does not "
            f"know; {_known()}"
        ) from None
    if kind.name not in _PLAIN and kind.name not in _QUANTISED:
        raise UserError(f"{name} in {path} is stored as {kind.name}; {_known()}")
    values, size = GGML_QUANT_SIZES[kind]
    *outer, width = entry.shape
    if width % values:
        raise UserError(f"{path} is damaged: rows of {name} have {width} values, {kind.name} packs {values} at a time")
    stored = (math.prod(outer), width // values * size)
    end = entry.offset + math.prod(stored)
    if end > len(container.data):
        raise UserError(f"{path} is truncated: {name} ends at byte {end}, the file has {len(container.data)} bytes")
    rows = container.data[entry.offset : end].reshape(stored)
    plain = _PLAIN.get(kind.name)

    def read(index: Index) -> np.ndarray:
        if len(entry.shape) == 1:
            return _finite(decode(rows)[0], name, container)[index]
        return _finite(decode(rows.reshape(*outer, -1)[index[:-1]])[..., index[-1]], name, container)

    def decode(part: np.ndarray) -> np.ndarray:
        part = np.ascontiguousarray(part)
        if plain is not None:
            return part.view(plain)
        with np.errstate(all="ignore"):  # damaged scales; `_finite` reports them
            return np.asarray(dequantize(part, kind), np.float32)

    return Tensor(name, entry.shape, np.dtype(np.float32) if plain is None else plain, read, str(path))


def _finite(values: np.ndarray, name: str, container: Container) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"{container.path} is damaged: {name} has values that are not finite numbers")
    return values


def _known() -> str:
    return f"known: {', '.join((*_PLAIN, *_QUANTISED))}"
