"""The frozen backbone's hidden states over packed rows, computed once: they are the same in every epoch."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.errors import writing
from tokenswift_jax.step.loop import exact_products
from tokenswift_jax.training.forward import hidden_states
from tokenswift_jax.training.learner import Learner
from tokenswift_jax.training.windows import Batch, Packing


class KeptStates:
    """A file with the states of the rows read so far; it disappears with this process.

    Each row goes through the backbone alone, so its states do not depend on its batch. A resumed run, which begins with
    an empty file, computes the same bits.

    Attributes:
      bytes: the size of the file after an epoch.
    """

    def __init__(self, folder: Path, learner: Learner, packing: Packing) -> None:
        """Opens the file in `folder`, which is made where it is missing; WriteError if that cannot be written."""
        self._folder, self._learner = folder, learner
        self._shape = (packing.length, learner.config.hidden_size)
        self._dtype = np.dtype(learner.dtype)
        self._row_bytes = self._dtype.itemsize * packing.length * learner.config.hidden_size
        self.bytes = self._row_bytes * packing.rows
        self._places: dict[bytes, int] = {}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

        # The pass reads no head, and the steps donate the first values of the heads.
        heads = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), learner.heads)

        def states(backbone: Any, row: Batch) -> jax.Array:
            with exact_products(learner.dtype):
                return hidden_states(nnx.merge(learner.graph, heads, backbone), row, "none")[0]

        self._states = jax.jit(states)

    def __enter__(self) -> KeptStates:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def of(self, batch: Batch) -> np.ndarray:
        """The states [accumulation, batch, length, hidden_size] over a batch [accumulation, batch, length].

        Raises:
          WriteError: the file cannot grow.
        """
        rows = zip(*(np.asarray(part).reshape(-1, part.shape[-1]) for part in batch), strict=True)
        found = [self._of_row(Batch(*row)) for row in rows]
        return np.stack(found).reshape(*batch.tokens.shape, self._shape[-1])

    def _of_row(self, row: Batch) -> np.ndarray:
        key = hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest()
        place = self._places.get(key)
        if place is not None:
            self._file.seek(place * self._row_bytes)
            return np.frombuffer(self._file.read(self._row_bytes), self._dtype).reshape(self._shape)
        states = np.asarray(self._states(self._learner.backbone, Batch(*(part[None] for part in row))))
        with writing(self._folder):
            self._file.seek(len(self._places) * self._row_bytes)
            self._file.write(states.tobytes())
        self._places[key] = len(self._places)
        return states
