"""Hashes that identify a checkpoint: one of all of it, and one of the target, on which the texts depend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.directory import base_directory, read_config
from tokenswift_jax.checkpoint.orbax_weights import ORBAX_FOLDER
from tokenswift_jax.checkpoint.tensors import HEADS_FILE
from tokenswift_jax.models.hf_fields import of_the_target

_SAMPLES, _SAMPLE_BYTES = 2048, 32768


def fingerprint(directory: Path) -> str:
    """A hash (64 hex digits) that identifies a checkpoint: its configuration and weights, including its base's.

    The hash covers all of config.json. It covers the size of each file of weights, the header of a safetensors file,
    and 2,048 evenly spaced pieces of 32 KiB, which is all of a file up to 64 MiB.
    """
    digest = hashlib.sha256()
    for place in dict.fromkeys((directory, base_directory(directory))):
        digest.update((place / "config.json").read_bytes())
        for file in sorted([*place.glob("*.safetensors"), *(place / ORBAX_FOLDER).glob("**/d/*")]):
            _hash_sampled(file, digest)
    return digest.hexdigest()


def target_fingerprint(directory: Path) -> str:
    """A hash (64 hex digits) of what the target computes from: no draft heads, no field that changes no text.

    The hash covers name, dtype and shape of each tensor, and evenly spaced pieces of 32 KiB: 2,048 of all tensors, and
    one of each. An orbax folder counts with all of its files.
    """
    base, digest = base_directory(directory), hashlib.sha256(b"target\n")
    digest.update(json.dumps(of_the_target(read_config(directory)), sort_keys=True).encode())
    tensors = [one for file in base.glob("*.safetensors") if file.name != HEADS_FILE for one in _tensors(file)]
    step = max(_SAMPLE_BYTES, sum(end - begin for *_, begin, end in tensors) // _SAMPLES)
    for name, kind, shape, file, begin, end in sorted(tensors, key=lambda one: (one[0], one[3].name)):
        digest.update(f"{name} {kind} {shape}\n".encode())
        with file.open("rb") as stream:
            _hash_pieces(stream, digest, begin, end, step)
    for file in sorted((base / ORBAX_FOLDER).glob("**/d/*")):
        _hash_sampled(file, digest)
    return digest.hexdigest()


def known_fingerprint(directory: Path, recorded: Any) -> str:
    """The hash of a target for a file that may have one: `recorded`, if it is the checkpoint's `fingerprint`, which
    earlier versions stored; else the `target_fingerprint`."""
    now = target_fingerprint(directory)
    return recorded if recorded not in (None, now) and recorded == fingerprint(directory) else now


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], Path, int, int]]:
    """Name, dtype, shape, file, first byte and end of the tensors of the target in a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    for stored, entry in entries.items():
        name = names.canonical(stored)
        if stored != "__metadata__" and not name.startswith(names.HEAD_PREFIX):
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            yield name, entry["dtype"], entry["shape"], file, begin, end


def _hash_sampled(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}\n".encode())
    with file.open("rb") as stream:
        if file.suffix == ".safetensors":
            header = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header, size)))
        _hash_pieces(stream, digest, 0, size, max(_SAMPLE_BYTES, size // _SAMPLES))


def _hash_pieces(stream: BinaryIO, digest: Any, begin: int, end: int, step: int) -> None:
    for offset in range(begin, end, step):
        stream.seek(offset)
        digest.update(stream.read(min(_SAMPLE_BYTES, end - offset)))
